#!/usr/bin/env bash
# One job on all hosts of a Cloud TPU pod slice.
set -euo pipefail

if [ $# -lt 3 ] || [ "$1" = --help ]; then
  cat <<'HELP'
Usage: launch_tpu_pod.sh TPU_NAME ZONE COMMAND [FLAGS...]     such as: launch_tpu_pod.sh my-pod us-west4-a train --gin_file=...

Runs `prompt-tuning COMMAND FLAGS --multiprocess` on every host of the TPU VM, from the folder REMOTE_DIR, with gcloud. The hosts find
each other through the TPU's metadata. MODEL_DIR must be one that all hosts share (gs://... or NFS). When the job is preempted
(SIGTERM) it stops with a checkpoint; the same command goes on from it.

Environment:
  REMOTE_DIR  folder of the repository or of relative paths, on each host (.)
  SETUP       a command to run before, such as 'source venv/bin/activate' (true)
HELP
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
tpu=$1
zone=$2
shift 2
# exec: SIGTERM reaches the job itself.
printf -v remote 'cd %q && %s && exec prompt-tuning%s --multiprocess' "${REMOTE_DIR:-.}" "${SETUP:-true}" "$(printf ' %q' "$@")"
exec gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="$remote"
