"""Lets the tests of this folder import what they share (`throughput_builders`) by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
