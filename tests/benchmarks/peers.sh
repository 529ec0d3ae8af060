#!/usr/bin/env bash
# Makes the environment of Tunix, which the benchmarks compare with, and prints
# its Python:
#
#   bash tests/benchmarks/peers.sh FOLDER    # then --tunix_python=FOLDER/bin/python
#
# It wants Python 3.12 (or newer: PYTHON=...) and other releases of what we use,
# so it gets an environment of its own. transformers and torch are in ours.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
# shellcheck source=launch/venv.sh
source "$HERE/../../launch/venv.sh"

[[ $# -eq 1 && "$1" != -* ]] ||
  die "usage: bash tests/benchmarks/peers.sh FOLDER"
python="${PYTHON:-python3.12}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
  die "$python does not run, or is older than Python 3.12; set PYTHON=/path/to/python"
create_venv "$1" "$python" >&2
# The JAX that we are measured with, so that only the two codes differ.
"$1/bin/python" -m pip --disable-pip-version-check install \
  google-tunix==0.1.7 jax==0.10.2 flax==0.12.8 optax==0.2.8 >&2
"$1/bin/python" -c 'from tunix.sft import peft_trainer' >&2
echo "$1/bin/python"
