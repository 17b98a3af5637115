#!/usr/bin/env bash
# One job as N processes on this machine, over loopback: a pod in small.
set -euo pipefail

if [ $# -lt 2 ] || [ "$1" = --help ]; then
  cat <<'HELP'
Usage: launch_local.sh N COMMAND [FLAGS...]     such as: launch_local.sh 2 train --gin_file=...

Runs `prompt-tuning COMMAND FLAGS` as N processes of one job; their output is prefixed with their number. SIGTERM goes to
all of them: they stop after the same step. When one fails the others are ended. The exit code is that of the first that failed.

Environment:
  DEVICES_PER_PROCESS  simulated CPU devices of each process (1)
  JAX_PLATFORMS        cpu unless it is set
  GRACE                seconds that the others have to end by themselves when one has failed (30)
  PYTHON               the interpreter (python)
HELP
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
count=$1
shift
[[ $count =~ ^[1-9][0-9]*$ ]] || { echo "launch_local.sh: N=$count; expected a number of processes." >&2; exit 2; }
python=${PYTHON:-python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES_PER_PROCESS:-1}"

prefix() { trap "" TERM INT; exec sed -u "s/^/[$1] /"; }  # outlives a signal to the whole group
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < count; i++)); do
  "$python" -m prompt_tuning.cli "$@" --coordinator_address="127.0.0.1:$port" --process_count="$count" \
    --process_index="$i" > >(prefix "$i") 2> >(prefix "$i" >&2) &
  pids+=($!)
done

code=0
until=0
while [ ${#pids[@]} -gt 0 ]; do
  sleep 0.2 || true  # a signal to the whole group ends it too
  for i in "${!pids[@]}"; do
    kill -0 "${pids[$i]}" 2>/dev/null && continue
    wait "${pids[$i]}" && status=0 || status=$?
    unset "pids[$i]"
    if [ "$status" != 0 ] && [ "$code" = 0 ]; then
      code=$status
      until=$((SECONDS + ${GRACE:-30}))
      echo "launch_local.sh: process $i ended with code $status" >&2
    fi
  done
  if [ "$code" != 0 ] && [ $SECONDS -ge $until ] && [ ${#pids[@]} -gt 0 ]; then
    kill -KILL "${pids[@]}" 2>/dev/null || true
  fi
done
exit "$code"
