#!/usr/bin/env bash
# One job on all GPUs of this machine; one process drives them all.
set -euo pipefail

if [ $# -lt 1 ] || [ "$1" = --help ]; then
  cat <<'HELP'
Usage: launch_gpu_node.sh COMMAND [FLAGS...]     such as: launch_gpu_node.sh train --gin_file=...

Runs `prompt-tuning COMMAND FLAGS`. SIGTERM goes to the job, which stops with a checkpoint; the same command goes on from it. A job that
is killed by another signal (a lost GPU, memory) is started again with the same flags, at most RETRIES times.

Environment:
  CUDA_VISIBLE_DEVICES  some GPUs instead of all
  RETRIES               how often to start again (3)
HELP
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi

stopped=0
trap 'stopped=1; kill -TERM "$job" 2>/dev/null || true' TERM INT
for ((try = 0; ; try++)); do
  prompt-tuning "$@" &
  job=$!
  until wait "$job" && code=0 || code=$?; ! kill -0 "$job" 2>/dev/null; do :; done  # a signal ends wait, not the job
  if [ "$code" -le 128 ] || [ $stopped = 1 ] || [ $try -ge "${RETRIES:-3}" ]; then
    exit "$code"
  fi
  echo "launch_gpu_node.sh: killed by signal $((code - 128)); starting again ($((try + 1)) of ${RETRIES:-3})" >&2
done
