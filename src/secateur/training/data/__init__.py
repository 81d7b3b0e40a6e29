"""Training data: from texts and conversations to windows of tokens, cached or streamed."""

from secateur.training.data.apart import keeps_examples_apart
from secateur.training.data.held_out import load_held_out
from secateur.training.data.load import load_training_data
from secateur.training.data.split import hold_out
from secateur.training.data.text import TrainingText
from secateur.training.data.training_data import TrainingData

__all__ = [
    "TrainingData",
    "TrainingText",
    "hold_out",
    "keeps_examples_apart",
    "load_held_out",
    "load_training_data",
]
