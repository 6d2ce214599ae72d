#!/usr/bin/env bash
# The batch job that scripts/slurm.sh submits:
#
#   slurm_job.sh PYTHON gpu|node GPUS [NAME=VALUE ...] MODULE ARGUMENT...
#
# Slurm runs a copy of this file, so it must not depend on other files.
set -euo pipefail
python=$1 processes=$2 gpus=$3
shift 3
while [[ $1 =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; do
  export "${1?}"
  shift
done

# By default JAX gives each Slurm task the GPU with the task's local id.
if [[ $processes == node ]]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi

job=${SLURM_JOB_ID:?}
printf '=== %s, start %s of job %s\n' "$(date -u +%FT%TZ)" "$((${SLURM_RESTART_COUNT:-0} + 1))" "$job"
# srun no longer inherits the cores per task from sbatch (Slurm 22.05). One lost process ends all.
srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} \
  "$python" -m "$@" &
step=$!

# Slurm requeues a preempted job, but not a job that reaches the time limit.
trap 'interrupted=true; echo "=== time limit is near: requeue"; scontrol requeue "$job"' USR1
trap 'interrupted=true; kill -TERM "$step" 2>/dev/null || true' TERM

# A trap interrupts `wait`, which then returns a status that is not the training's.
while
  interrupted=false status=0
  wait "$step" || status=$?
  $interrupted
do :; done
exit "$status"
