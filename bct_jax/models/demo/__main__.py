"""Prints the folder of a demo model, made first if it is not there."""

import sys

from bct_jax.models.demo import main

if __name__ == "__main__":
  sys.exit(main())
