"""The compressed model at work: what runs faster where, and why."""
