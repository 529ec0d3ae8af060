#!/usr/bin/env bash
# Makes the environment of MaxText, which tpu_memory.py compares with, and prints
# its Python:
#
#   bash tests/benchmarks/maxtext.sh FOLDER  # then --maxtext_python=FOLDER/bin/python
#
# It wants Python 3.12 (or newer: PYTHON=...). MaxText comes without its extras,
# which pin several hundred packages; here is what its compiling imports.
set -euo pipefail
# shellcheck source=tests/benchmarks/peer_venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/peer_venv.sh"

make_peer_venv maxtext.sh "$@"
pip=("$VENV_PYTHON" -m pip --disable-pip-version-check install)
"${pip[@]}" jax==0.12.0.1 libtpu==0.0.52 flax==0.12.12 optax==0.2.8 \
  orbax-checkpoint==0.12.8 qwix==0.1.8 tokamax==0.0.17 aqtp==0.9.0 \
  drjax==0.2.1 grain==0.2.18 transformers==5.24.0 pathwaysutils==0.1.13 \
  cloud-accelerator-diagnostics ml-goodput-measurement jaxtyping jinja2 \
  omegaconf pillow psutil pydantic sentencepiece sympy tensorboardX tiktoken >&2
"${pip[@]}" --no-deps maxtext==0.2.5 >&2
JAX_PLATFORMS=cpu "$VENV_PYTHON" -c \
  'from maxtext.trainers.pre_train import train_compile' >&2
echo "$VENV_PYTHON"
