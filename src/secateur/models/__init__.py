"""Where a model's blocks and weight matrices are, found by structure, and how blocks are called."""
