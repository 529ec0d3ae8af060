#!/usr/bin/env bash
# Runs an experiment on all hosts of a Cloud TPU slice. From the checkout:
#
#   TPU=NAME ZONE=us-east5-a bash launch/tpu_pod.sh \
#     --config=FILE --workdir=gs://BUCKET/DIR [flags of bct_jax.main ...]
#
# The slice NAME is used as it is. With TYPE, e.g. TYPE=v5litepod-16, it is asked
# for first as a queued resource, unless it is there. The run directory is in a
# bucket, or on a file system that all hosts share.
#
#   --dry_run    prints the exact commands and runs none
#   --delete     deletes the queued resource and its slice, and ends
#
# Each host writes LOGS/worker_N.log. The exit code is 0 if all hosts succeeded,
# 75 if the run was preempted and goes on by the same command, else that of a
# host that failed. Ctrl-C or SIGTERM is passed on, so that the hosts save.
#
# Environment: TPU, ZONE, PROJECT (gcloud's own), TYPE, RUNTIME (with TYPE:
# v2-alpha-tpuv5-lite; v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e for v6e), SPOT (1:
# cheaper, may be taken away), LOGS (logs/NAME), SETUP (run first on each host;
# installs Python 3.11, which those images lack).
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

# XLA flags by chip, for every host; none is needed. Set TPU_FLAGS to what helps.
# These are the ones that MaxText sets; none was measured here.
# v5e (v5litepod), v6e: overlap of fsdp collectives with compute.
#   TPU_FLAGS="--xla_tpu_enable_async_collective_fusion=true \
#     --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true \
#     --xla_tpu_overlap_compute_collective_tc=true"
# v5p: the same, and collectives in steps.
#   TPU_FLAGS+=" --xla_tpu_enable_async_collective_fusion_multiple_steps=true"
# v6e: more of the fast memory for one kernel.
#   TPU_FLAGS="--xla_tpu_scoped_vmem_limit_kib=98304"
TPU_FLAGS="${TPU_FLAGS:-}"
SETUP="${SETUP:-command -v python3.11 >/dev/null || { sudo apt-get update -qq && sudo apt-get install -y -qq python3.11-venv; }}"

die() {
  echo "error: $*" >&2
  exit 2
}

dry_run="" delete=""
flags=()
for argument in "$@"; do
  case "$argument" in
    --dry_run) dry_run=1 ;;
    --delete) delete=1 ;;
    *) flags+=("$argument") ;;
  esac
done
: "${TPU:?name of the slice}" "${ZONE:?zone of the slice}"
[[ -n "$delete" || " ${flags[*]-} " == *" --workdir="* ]] ||
  die "--workdir=DIR is needed, on a file system that all hosts share, or gs://BUCKET/DIR"

where=(--zone="$ZONE")
[[ -z "${PROJECT:-}" ]] || where+=(--project="$PROJECT")
logs="${LOGS:-$ROOT/logs/$TPU}"

# Prints a command, or runs it.
run() {
  if [[ -n "$dry_run" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() {
  gcloud compute tpus "$@"
}

ssh_to() {
  run gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker="$1" \
    --command="$2"
}

create() {
  local spot=()
  [[ "${SPOT:-}" != 1 ]] || spot=(--spot)
  if [[ -z "$dry_run" ]] && tpu queued-resources describe "$TPU" "${where[@]}" >/dev/null 2>&1; then
    echo "$TPU was asked for already"
  else
    run gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" \
      "${where[@]}" --accelerator-type="$TYPE" \
      --runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}" ${spot[@]+"${spot[@]}"}
  fi
  [[ -z "$dry_run" ]] || return 0
  local state=""
  while true; do
    state="$(tpu queued-resources describe "$TPU" "${where[@]}" --format='value(state.state)')"
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING)
        die "$TPU is $state; run with --delete, then again"
        ;;
    esac
    echo "$TPU is $state"
    sleep "${POLL_SECONDS:-30}"
  done
}

count_workers() {
  if [[ -n "$dry_run" ]]; then
    echo "${WORKERS:-4}" # as many as would be asked for
  else
    tpu tpu-vm describe "$TPU" "${where[@]}" --format='value(networkEndpoints.len())'
  fi
}

extras=tpu,demo
[[ " ${flags[*]-} " != *" --workdir="[a-z]*"://"* ]] || extras+=,store

install() {
  local archive="$logs/bct_jax.tar.gz"
  if [[ -z "$dry_run" ]]; then
    mkdir -p "$logs"
  fi
  # Hidden files are environments and caches, which tests and runs may be writing.
  run tar --exclude='./.?*' --exclude=__pycache__ --exclude=./runs --exclude=./logs \
    -czf "$archive" -C "$ROOT" .
  run gcloud compute tpus tpu-vm scp "$archive" "$TPU:bct_jax.tar.gz" \
    "${where[@]}" --worker=all
  # shellcheck disable=SC2016 # expanded there
  ssh_to all "set -e; $SETUP; "'mkdir -p bct_jax_run; tar -xzf bct_jax.tar.gz -C bct_jax_run; cd bct_jax_run; . launch/venv.sh; make_venv "$PWD/.venv" '"$extras"
}

# The processes' numbers are kept, so that a signal can be passed on.
start_command() {
  printf 'cd bct_jax_run; echo $$ >pid; export LIBTPU_INIT_ARGS=%q; exec .venv/bin/python -m bct_jax.main --multihost --num_processes=%q' \
    "$TPU_FLAGS" "$1"
  printf ' %q' ${flags[@]+"${flags[@]}"}
}

# shellcheck disable=SC2016,SC2317 # expanded there; called by a trap
pass_on() {
  signalled=1
  echo "passing SIGTERM on: the hosts save and end" >&2
  ssh_to all 'kill -TERM $(cat bct_jax_run/pid)' || true
}

if [[ -n "$delete" ]]; then
  run gcloud compute tpus queued-resources delete "$TPU" "${where[@]}" --force --quiet
  exit
fi
[[ -z "${TYPE:-}" ]] || create
install
workers="$(count_workers)"
command="$(start_command "$workers")"
if [[ -n "$dry_run" ]]; then
  for ((i = 0; i < workers; i++)); do
    ssh_to "$i" "$command"
  done
  exit 0
fi

trap pass_on INT TERM
pids=()
for ((i = 0; i < workers; i++)); do
  # Its own session, so that Ctrl-C does not end ssh before the hosts saved.
  setsid gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker="$i" \
    --command="$command" >"$logs/worker_$i.log" 2>&1 </dev/null &
  pids+=($!)
done
echo "running on $workers hosts; logs in $logs"

result=0
for ((i = 0; i < workers; i++)); do
  while true; do
    signalled="" code=0
    wait "${pids[$i]}" || code=$?
    # A trap ends `wait` with a code of its own.
    [[ -n "$signalled" ]] || break
  done
  if [[ "$code" != 0 ]]; then
    echo "host $i ended with $code:" >&2
    tail -n 3 "$logs/worker_$i.log" | sed "s/^/  $i: /" >&2
    [[ "$result" != 0 && "$code" == 75 ]] || result="$code"
  fi
done
exit "$result"
