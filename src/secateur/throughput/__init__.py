"""Speed of whole models: prefill and decode of several models in turns, on one machine."""
