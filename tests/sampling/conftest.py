"""Lets the tests of this folder import ``networks_in_the_wild``: no package called ``tests`` can be in its way."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
