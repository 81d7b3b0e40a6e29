"""Lets every test import what the tests share (`families`) by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
