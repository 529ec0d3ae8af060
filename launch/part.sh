# Sourced by launch/test.sh and .ci/run: says how long each part of them takes.
#
#   part NAME COMMAND [ARGUMENT ...]    the command may be a function
#
# The CPU time, of all processes that a part waits for, depends less on what
# else the machine does. `grep ' took '` finds all parts in a log.
# shellcheck shell=bash

part() {
  local name="$1" TIMEFORMAT="== $1 took %lR, CPU %lU + %lS"
  shift
  echo "== $name"
  time "$@"
}

# Begins a part that goes on beside what follows, and takes what that leaves
# idle: tests wait for processes a tenth of the time. What it prints is kept for
# `end_part`, which waits for it and returns its exit status.
#
#   begin_part NAME COMMAND ...    end_part NAME
begin_part() {
  if [[ -z "${PARTS:-}" ]]; then
    PARTS="$(mktemp -d)"
    trap stop_parts EXIT
  fi
  set -m # in a group of its own, which ends as one
  part "$@" >"$PARTS/$1.log" 2>&1 &
  set +m
  echo "$!" >"$PARTS/$1.pid"
}

end_part() {
  local status=0
  wait "$(cat "$PARTS/$1.pid")" || status=$?
  cat "$PARTS/$1.log"
  rm "$PARTS/$1.pid"
  return "$status"
}

stop_parts() {
  local file
  for file in "$PARTS"/*.pid; do
    [[ ! -e "$file" ]] || kill -- "-$(cat "$file")" 2>/dev/null || true
  done
  rm -rf "$PARTS"
}
