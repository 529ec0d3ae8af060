# Sourced by the scripts beside it: makes a virtual environment and installs
# this project into it, once. Works with bash 3.2, the one macOS has.
#
#   make_venv FOLDER EXTRAS [PYTHON]    sets VENV_PYTHON
# shellcheck shell=bash

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

die() {
  echo "error: $*" >&2
  exit 2
}

# Whether a command is a Python that can run the project.
usable_python() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    >/dev/null 2>&1
}

# Prints $PYTHON, else the first of the usual names that will do.
find_python() {
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    usable_python "$PYTHON" ||
      die "PYTHON=$PYTHON does not run, or is older than Python 3.11"
    echo "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if usable_python "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python"
}

# Prints what decides the content of an environment. It includes the folder,
# since an editable install points there, and torch, which a user may remove.
stamp_of() {
  "$1" - "$ROOT" "$2" <<'PY'
import hashlib, pathlib, sys
root, extras = sys.argv[1:]
parts = [sys.version, root, extras]
for name in ("setup.py", "launch/venv.sh"):
  parts.append((pathlib.Path(root) / name).read_text())
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PY
}

create_venv() {
  local folder="$1" python="$2"
  local clear=()
  if [[ -e "$folder" ]]; then
    # Left by an interrupted run, or its Python was removed. Anything that is
    # not an environment is the user's.
    [[ -f "$folder/pyvenv.cfg" || -z "$(ls -A "$folder")" ]] ||
      die "$folder is not a virtual environment; remove it, or set BCT_JAX_VENV"
    clear=(--clear)
  fi
  echo "making a virtual environment in $folder"
  "$python" -m venv ${clear[@]+"${clear[@]}"} "$folder" ||
    die "$python could not make $folder (on Debian: apt install python3-venv)"
}

make_venv() {
  local folder="$1" extras="$2" python="${3:-}"
  VENV_PYTHON="$folder/bin/python"
  if ! usable_python "$VENV_PYTHON" ||
    ! "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
    [[ -n "$python" ]] || python="$(find_python)"
    create_venv "$folder" "$python"
  fi
  local stamp="$folder/bct_jax-${extras//,/-}.stamp" wanted
  wanted="$(stamp_of "$VENV_PYTHON" "$extras")"
  if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
    return
  fi
  local pip=("$VENV_PYTHON" -m pip --disable-pip-version-check)
  : >"$folder/install.log"
  case ",$extras," in
    *,test,*) install_cpu_torch "$folder/install.log" "${pip[@]}" ;;
  esac
  run_logged "$folder/install.log" "installing bct_jax[$extras] into $folder" \
    "${pip[@]}" install -e "${ROOT}[$extras]"
  # Only a warning for pip, and what needs the extra would be skipped in silence.
  if grep "does not provide the extra" "$folder/install.log" >&2; then
    die "of $extras not all are extras of setup.py"
  fi
  echo "$wanted" >"$stamp"
}

# run_logged LOG TITLE COMMAND ...: says what is done in one line, and puts what
# the command prints into a file; of a failure it shows the end. On a terminal
# the line turns while the command runs.
run_logged() {
  local log="$1" title="$2" code=0 turn=0
  shift 2
  echo "== $*" >>"$log"
  if [[ ! -t 1 ]]; then
    echo "$title (log: $log)"
    "$@" >>"$log" 2>&1 || code=$?
  else
    "$@" >>"$log" 2>&1 &
    local job=$! marks="|/-\\"
    # The signal goes to the command too, which is in the same group.
    while kill -0 "$job" 2>/dev/null; do
      printf '\r%s %s' "${marks:turn++ % 4:1}" "$title"
      sleep 0.2
    done
    wait "$job" || code=$?
    printf '\r  %s (log: %s)\n' "$title" "$log"
  fi
  if [[ "$code" != 0 ]]; then
    tail -n 20 "$log" >&2
    echo "error: $title: exit code $code; all of it is in $log" >&2
  fi
  return "$code"
}

# torch is only the reference that tests compare with. It goes in first and by
# version, so that whatever asks for torch afterwards resolves no other build.
# On Linux set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS to where a CPU build is, if
# the several GB of a CUDA build are too much.
install_cpu_torch() {
  local log="$1"
  shift
  if "$VENV_PYTHON" -c 'import torch' >/dev/null 2>&1; then
    return
  fi
  run_logged "$log" "installing torch, the reference of the tests" \
    "$@" install torch==2.13.0
}
