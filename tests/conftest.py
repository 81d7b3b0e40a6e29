"""Lets every test import what the tests share (`families`) by name."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

# Threads that wait for each other cost more than they bring on tiny models: 15 times the time where
# the cores are shared with other processes.
torch.set_num_threads(1)
