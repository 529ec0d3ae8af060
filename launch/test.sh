#!/usr/bin/env bash
# Makes an environment and runs every gate: ruff, pyright, shellcheck, pytest.
#
#   bash launch/test.sh [--all] [flags of pytest ...]
#
# --all or BCT_JAX_TEST_ALL=1 also runs the tests marked long or slow (see
# pyproject.toml), and installs the extras `eval` and `wandb` for those
# that need them, `topology`, a compiler for TPUs, one for GPUs, and the wheels
# of trl and axolotl, whose chat templates a test reads.
# BCT_JAX_VENV (.venv) and PYTHON are heeded.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
# shellcheck source=launch/venv.sh
source "$HERE/venv.sh"
# shellcheck source=launch/part.sh
source "$HERE/part.sh"

all="${BCT_JAX_TEST_ALL:-0}"
options=()
for argument in "$@"; do
  case "$argument" in
    --all) all=1 ;;
    *) options+=("$argument") ;;
  esac
done

# Modules are compiled once, when a process imports them. pip would compile all
# that there are, a third of the work of an installation.
unset PYTHONDONTWRITEBYTECODE
export PIP_COMPILE=0
# Made absolute, since the gates run from the root.
venv="${BCT_JAX_VENV:-$ROOT/.venv}"
[[ "$venv" == /* ]] || venv="$PWD/$venv"
# The packages that bct_jax/interop is for: 60 more distributions, 480 MB.
extras=demo,test
if [[ "$all" == 1 ]]; then
  export BCT_JAX_TEST_ALL=1 # the tests draw more examples, too
  extras+=,eval,topology,wandb
fi
part environment make_venv "$venv" "$extras"
if [[ "$all" == 1 ]]; then
  # Without their dependencies: they are read, and never imported.
  "$VENV_PYTHON" -m pip install --quiet --no-deps trl==1.16.0 axolotl==0.19.0
  # The compiler for GPUs, of this jax, where one test finds it and no other
  # process loads it: 480 MB.
  if [[ ! -d "$venv/gpu_compiler" ]]; then
    version="$("$VENV_PYTHON" -c 'import jaxlib; print(jaxlib.__version__)')"
    part "GPU compiler" "$VENV_PYTHON" -m pip install --quiet --no-deps \
      --target "$venv/gpu_compiler" "jax-cuda12-plugin==$version" \
      "jax-cuda12-pjrt==$version"
  fi
fi
cd "$ROOT"

part "ruff check" "$VENV_PYTHON" -m ruff check .
part "ruff format" "$VENV_PYTHON" -m ruff format --check .
part pyright "$VENV_PYTHON" -m pyright --pythonpath "$VENV_PYTHON"
if command -v shellcheck >/dev/null; then
  part shellcheck shellcheck --external-sources launch/*.sh launch/*.sbatch \
    .ci/run tests/benchmarks/*.sh
else
  echo "== shellcheck: not installed, skipped"
fi
# Two files at a time; a file keeps its process, which keeps what it compiled.
run_pytest() {
  part "pytest $*" "$VENV_PYTHON" -m pytest -n 2 --dist loadfile \
    --no-loadscope-reorder --durations=20 --durations-min=5 "$@" \
    ${options[@]+"${options[@]}"}
}
code=0
if [[ "$all" != 1 ]]; then
  run_pytest || code=$?
else
  run_pytest -m "not optimized" || code=$?
  optimized=0
  BCT_JAX_TEST_OPTIMIZED=1 run_pytest -m optimized || optimized=$?
  # 5: what the options name has no such test.
  [[ "$optimized" == 0 || "$optimized" == 5 ]] || code="$optimized"
fi
exit "$code"
