#!/usr/bin/env bash
# Makes the environment of Tunix, which the benchmarks compare with, and prints
# its Python:
#
#   bash tests/benchmarks/peers.sh FOLDER    # then --tunix_python=FOLDER/bin/python
#
# It wants Python 3.12 (or newer: PYTHON=...) and other releases of what we use,
# so it gets an environment of its own. transformers and torch are in ours.
set -euo pipefail
# shellcheck source=tests/benchmarks/peer_venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/peer_venv.sh"

make_peer_venv peers.sh "$@"
# The JAX that we are measured with, so that only the two codes differ.
"$VENV_PYTHON" -m pip --disable-pip-version-check install \
  google-tunix==0.1.7 jax==0.10.2 flax==0.12.8 optax==0.2.8 >&2
"$VENV_PYTHON" -c 'from tunix.sft import peft_trainer' >&2
echo "$VENV_PYTHON"
