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
