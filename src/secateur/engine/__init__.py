"""Runs a model for many requests at a time: static cache, continuous batching, streaming."""

from secateur.engine.engine import Engine, Prompt
from secateur.engine.options import GenerationOptions
from secateur.engine.result import FinishReason, Piece, Result, ScoredToken, Timing

__all__ = [
    "Engine",
    "FinishReason",
    "GenerationOptions",
    "Piece",
    "Prompt",
    "Result",
    "ScoredToken",
    "Timing",
]
