#!/usr/bin/env bash
# Measures training and decoding on an NVIDIA GPU: MFU of our step on a Llama
# shape of 1.24 billion parameters in bfloat16 at 2048 positions, transformers
# beside it, and the share of the memory's bandwidth in decoding.
#
#   bash launch/gpu_check.sh [--cpu] [flags of tests/benchmarks/gpu_check.py ...]
#
# JAX and torch bring CUDA libraries of their own, so each gets an environment:
# BCT_JAX_VENV (.venv-gpu) and BCT_JAX_TORCH_VENV (.venv-gpu-torch); PYTHON is
# heeded. With FLASH=1 also flash_attn is built for torch, which takes long and
# needs nvcc. --cpu runs it all on a tiny shape in one environment (.venv).
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
# shellcheck source=launch/venv.sh
source "$HERE/venv.sh"

cpu=0
for argument in "$@"; do
  case "$argument" in
    --cpu) cpu=1 ;;
  esac
done

options=()
if [[ "$cpu" == 1 ]]; then
  make_venv "${BCT_JAX_VENV:-$ROOT/.venv}" demo,test
else
  command -v nvidia-smi >/dev/null ||
    die "no NVIDIA driver here (nvidia-smi); --cpu runs a tiny shape without one"
  nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv,noheader
  torch_venv="${BCT_JAX_TORCH_VENV:-$ROOT/.venv-gpu-torch}"
  torch_python="$torch_venv/bin/python"
  if ! "$torch_python" -c 'import torch, transformers' 2>/dev/null; then
    create_venv "$torch_venv" "$(find_python)"
    "$torch_python" -m pip --disable-pip-version-check install \
      torch==2.13.0 'transformers>=5.0' accelerate numpy
  fi
  attention=sdpa
  if [[ "${FLASH:-0}" == 1 ]]; then
    "$torch_python" -m pip --disable-pip-version-check install \
      --no-build-isolation packaging ninja setuptools wheel flash-attn
    attention+=,flash_attention_2
  fi
  options=("--torch_python=$torch_python" "--torch_attention=$attention")
  make_venv "${BCT_JAX_VENV:-$ROOT/.venv-gpu}" cuda
fi
exec "$VENV_PYTHON" "$ROOT/tests/benchmarks/gpu_check.py" \
  ${options[@]+"${options[@]}"} "$@"
