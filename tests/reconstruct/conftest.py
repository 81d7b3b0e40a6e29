import sys
from pathlib import Path

# The test modules of this folder share `toys`, which no package holds.
sys.path.insert(0, str(Path(__file__).parent))
