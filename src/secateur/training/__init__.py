"""Training on transformers' Trainer: pruned weights stay zero, factors stay factors."""
