"""Lets the tests of this folder import ``small_models``: no package called ``tests`` can be in its way."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
