# Sourced by the scripts that make the environment of a peer.
#
#   make_peer_venv SCRIPT FOLDER    sets VENV_PYTHON; SCRIPT is for its usage
# shellcheck shell=bash

# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../launch/venv.sh"

make_peer_venv() {
  local script="$1" python="${PYTHON:-python3.12}"
  shift
  [[ $# -eq 1 && "$1" != -* ]] ||
    die "usage: bash tests/benchmarks/$script FOLDER"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null ||
    die "$python does not run, or is older than Python 3.12; set PYTHON=/path/to/python"
  create_venv "$1" "$python" >&2
  VENV_PYTHON="$1/bin/python"
}
