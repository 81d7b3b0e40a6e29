"""How good a model is: perplexity, tasks, samples, and how much worse than a baseline."""
