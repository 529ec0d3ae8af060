#!/usr/bin/env bash
# Runs an experiment on a GKE node pool of TPUs or GPUs, as a JobSet.
#
#   NAME=lr3 IMAGE=REGISTRY/bct_jax CLAIM=shared bash launch/gke_jobset.sh \
#     --config=configs/FILE.py --workdir=/data/lr3 [flags of bct_jax.main ...]
#
#   --dry_run    prints the manifest and the exact command, and changes nothing
#   --list       shows the JobSets; --logs those of NAME's first process;
#   --delete     deletes NAME. Each alone, with NAME where it is named.
#
# The cluster needs JobSet (kubernetes-sigs/jobset) and a volume claim that many
# pods may write (Filestore, or a bucket by Cloud Storage FUSE), mounted at /data.
# With --workdir=gs://BUCKET/DIR it needs no claim: leave CLAIM out. Config and
# model then must be in the image, or on a hub.
# IMAGE has the checkout in /bct_jax, installed:
#
#   FROM python:3.12
#   COPY . /bct_jax
#   RUN pip install -e '/bct_jax[tpu,demo,store]'     # or cuda in place of tpu
#
# A pod that is evicted or preempted gets SIGTERM, saves and ends with 75; the
# JobSet is then started again as a whole, MAX_RESTARTS times. Exit codes 2 and 3
# (bad input, a loss that is not finite) end it for good.
#
# Environment: NAME, IMAGE, CLAIM, NAMESPACE (default), KIND (tpu), HOSTS (4: pods,
# one per host), CHIPS (4: per host), MAX_RESTARTS (100), and
#   of tpu: TPU_ACCELERATOR (tpu-v5-lite-podslice), TPU_TOPOLOGY (4x4)
#   of gpu: GPU_ACCELERATOR (nvidia-h100-80gb)
set -euo pipefail

# XLA flags by chip; none is needed. Set them by ENVIRONMENT, NAME=VALUE each.
# These are the ones that MaxText sets; none was measured here.
# v5e, v6e: overlap of fsdp collectives with compute.
#   ENVIRONMENT=("LIBTPU_INIT_ARGS=--xla_tpu_enable_async_collective_fusion=true \
#     --xla_tpu_overlap_compute_collective_tc=true")
# v6e: more of the fast memory for one kernel.
#   ENVIRONMENT=("LIBTPU_INIT_ARGS=--xla_tpu_scoped_vmem_limit_kib=98304")
# H100 and newer: overlap of collectives with compute.
#   ENVIRONMENT=("XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true")
ENVIRONMENT=()

die() {
  echo "error: $*" >&2
  exit 2
}

action=apply
flags=()
for argument in "$@"; do
  case "$argument" in
    --dry_run) action=dry_run ;;
    --list | --logs | --delete) action="${argument#--}" ;;
    *) flags+=("$argument") ;;
  esac
done
NAMESPACE="${NAMESPACE:-default}"
kubectl_in=(kubectl --namespace="$NAMESPACE")

[[ "$action" != list ]] || exec "${kubectl_in[@]}" get jobsets,pods
: "${NAME:?name of the JobSet}"
[[ "$NAME" =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  die "NAME=$NAME: lower case letters, digits and '-', at first a letter"
case "$action" in
  logs) exec "${kubectl_in[@]}" logs --follow "--selector=jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0" ;;
  delete) exec "${kubectl_in[@]}" delete jobset "$NAME" ;;
esac
: "${IMAGE:?image with the checkout in /bct_jax}"
volumes="" mounts="" cache="                - {name: BCT_JAX_CACHE, value: /tmp/bct_jax}"
if [[ " ${flags[*]-} " != *" --workdir="[a-z]*"://"* ]]; then
  : "${CLAIM:?persistent volume claim that all pods may write}"
  [[ " ${flags[*]-} " == *" --workdir=/data/"* ]] ||
    die "--workdir=/data/DIR is needed, on the volume that all pods share," \
      "or gs://BUCKET/DIR"
  volumes="            volumes:
            - name: data
              persistentVolumeClaim:
                claimName: $CLAIM"
  mounts="              volumeMounts:
              - name: data
                mountPath: /data"
  cache="${cache/\/tmp\/bct_jax//data/cache}"
fi

KIND="${KIND:-tpu}"
HOSTS="${HOSTS:-4}"
CHIPS="${CHIPS:-4}"
case "$KIND" in
  tpu)
    resource=google.com/tpu
    selector="cloud.google.com/gke-tpu-accelerator: ${TPU_ACCELERATOR:-tpu-v5-lite-podslice}
                cloud.google.com/gke-tpu-topology: ${TPU_TOPOLOGY:-4x4}"
    ;;
  gpu)
    resource=nvidia.com/gpu
    selector="cloud.google.com/gke-accelerator: ${GPU_ACCELERATOR:-nvidia-h100-80gb}"
    # On TPUs JAX finds the others by what GKE says.
    ENVIRONMENT+=("BCT_JAX_COORDINATOR=$NAME-run-0-0.$NAME:8476")
    ;;
  *) die "KIND=$KIND: tpu or gpu" ;;
esac

# A text as a YAML string.
quoted() {
  local text="${1//\\/\\\\}"
  printf '"%s"' "${text//\"/\\\"}"
}

items() {
  local text
  for text in "$@"; do
    printf '                - '
    quoted "$text"
    printf '\n'
  done
}

environment() {
  local pair
  for pair in ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}; do
    printf '                - {name: %s, value: ' "${pair%%=*}"
    quoted "${pair#*=}"
    printf '}\n'
  done
  [[ "$KIND" == gpu ]] || return 0
  cat <<EOF
                - name: BCT_JAX_PROCESS_ID
                  valueFrom:
                    fieldRef:
                      fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
EOF
}

manifest() {
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  namespace: $NAMESPACE
  annotations:
    # All pods on one slice, and no other JobSet there.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${MAX_RESTARTS:-100}
    rules:
    - name: badInput
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: run
    replicas: 1
    template:
      spec:
        parallelism: $HOSTS
        completions: $HOSTS
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: bct-jax
              operator: In
              values: [2, 3, 5]
        template:
          spec:
            restartPolicy: Never
            # To finish a step and save; spot machines give less.
            terminationGracePeriodSeconds: 300
            nodeSelector:
                $selector
$volumes
            containers:
            - name: bct-jax
              image: $IMAGE
              workingDir: /bct_jax
              # python is process 1 and gets the signals itself.
              command:
$(items python -m bct_jax.main --multihost "--num_processes=$HOSTS" ${flags[@]+"${flags[@]}"})
              env:
$cache
$(environment)
$mounts
              resources:
                limits:
                  $resource: $CHIPS
EOF
}

if [[ "$action" == dry_run ]]; then
  manifest
  echo "# ${kubectl_in[*]} apply --filename=-"
else
  manifest | "${kubectl_in[@]}" apply --filename=-
fi
