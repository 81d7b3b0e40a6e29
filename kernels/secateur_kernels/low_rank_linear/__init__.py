"""y = (x @ down.T) @ up.T (+ a 2:4 part) + bias for a weight that is two thin factors."""
