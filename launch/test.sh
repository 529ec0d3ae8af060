#!/usr/bin/env bash
# Makes an environment and runs every gate: ruff, pyright, shellcheck, pytest.
#
#   bash launch/test.sh [--all] [flags of pytest ...]
#
# --all or BCT_JAX_TEST_ALL=1 also runs the tests marked long or slow (see
# pyproject.toml), and installs the extras `eval`, `wandb` and `test-store` for
# those that need them, `topology`, a compiler for TPUs, one for GPUs, and the wheels
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
  extras+=,eval,test-store,topology,wandb
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
begin_part pyright "$VENV_PYTHON" -m pyright --pythonpath "$VENV_PYTHON"
if command -v shellcheck >/dev/null; then
  part shellcheck shellcheck --external-sources launch/*.sh launch/*.sbatch \
    .ci/run tests/benchmarks/*.sh
else
  echo "== shellcheck: not installed, skipped"
fi
# A file keeps its process, which keeps what it compiled.
# shellcheck disable=SC2317 # `part` calls both
run_pytest() { # the number of processes, then flags
  "$VENV_PYTHON" -m pytest -n "$1" --dist loadfile --no-loadscope-reorder \
    --durations=20 --durations-min=5 "${@:2}" ${options[@]+"${options[@]}"}
}
# shellcheck disable=SC2317
run_optimized() {
  local status=0
  BCT_JAX_TEST_OPTIMIZED=1 run_pytest 1 -m optimized || status=$?
  # 5: what the options name has no such test.
  [[ "$status" == 0 || "$status" == 5 ]]
}
code=0
if [[ "$all" != 1 ]]; then
  part pytest run_pytest 2 || code=$?
else
  begin_part "pytest, optimized" run_optimized
  part pytest run_pytest 2 -m "not optimized" || code=$?
  end_part "pytest, optimized" || code=$?
fi
end_part pyright || code=$?
exit "$code"
