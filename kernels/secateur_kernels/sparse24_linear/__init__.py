"""y = x @ weight.T + bias for a weight of which two of every four columns are kept."""
