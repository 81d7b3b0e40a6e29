"""Compact checkpoints in vLLM: the quantization method `secateur`, found by its entry point."""
