#!/usr/bin/env bash
# One job on several GPU nodes under SLURM: sbatch --nodes=4 --gpus-per-node=8 scripts/launch_slurm.sh train --gin_file=...
#SBATCH --job-name=prompt-tuning
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

if [ $# -lt 1 ] || [ "$1" = --help ]; then
  cat <<'HELP'
Usage: sbatch --nodes=N --gpus-per-node=G [sbatch options] launch_slurm.sh COMMAND [FLAGS...]

Runs `prompt-tuning COMMAND FLAGS --multiprocess` as one process a GPU; they find each other through SLURM. MODEL_DIR must be a folder
that all nodes share. When SLURM takes the nodes back, or 120 s before the time limit (sbatch --signal=B:TERM@SECONDS), all processes
get SIGTERM and stop after the same step with a checkpoint; the job is queued again, and goes on from it.

Environment:
  SETUP  a command to run before on each node, such as 'source venv/bin/activate' (true)
HELP
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
: "${SLURM_JOB_ID:?start this with sbatch, see --help}"

printf -v command '%s && exec prompt-tuning%s --multiprocess' "${SETUP:-true}" "$(printf ' %q' "$@")"
stopped=0
trap 'stopped=1; kill -TERM "$step" 2>/dev/null || true' TERM
srun --ntasks-per-node="${SLURM_GPUS_ON_NODE:-1}" --kill-on-bad-exit=1 bash -c "$command" &
step=$!
until wait "$step" && code=0 || code=$?; ! kill -0 "$step" 2>/dev/null; do :; done  # a signal ends wait, not the step
if [ $stopped = 1 ]; then
  scontrol requeue "$SLURM_JOB_ID" || true  # where SLURM does so by itself, this is refused
fi
exit "$code"
