"""Training on transformers' Trainer: what was pruned stays zero, what was factored stays factors."""
