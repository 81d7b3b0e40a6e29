"""An OpenAI-compatible server: vLLM's where it is installed, else a thin front over the engine."""
