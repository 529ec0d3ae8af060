"""Hides torch from a process with this folder on its PYTHONPATH.

Users need not have it. transformers would import it, which takes three seconds
of CPU.
"""

import sys

sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
