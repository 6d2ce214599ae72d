#!/usr/bin/env bash
# The batch job of scripts/slurm.sh, which submits it:
#
#   slurm_job.sh PYTHON gpu|node GPUS ARGUMENT...
#
# Slurm runs a copy of this file, so it must not need the files beside it.
set -euo pipefail
python=$1 processes=$2 gpus=$3
shift 3

# JAX gives each task of Slurm one GPU, the one of its number on the node, unless told otherwise.
if [[ $processes == node ]]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi

job=${SLURM_JOB_ID:?}
printf '=== %s, start %s of job %s\n' "$(date -u +%FT%TZ)" "$((${SLURM_RESTART_COUNT:-0} + 1))" "$job"
# srun takes no cores a task from sbatch any more (Slurm 22.05). One lost process ends all.
srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} \
  "$python" -m dinotxt_jax.train "$@" &
step=$!

# Slurm queues a preempted job again by itself, but not one that reaches its time limit.
trap 'interrupted=true; echo "=== time limit is near: requeue"; scontrol requeue "$job"' USR1
trap 'interrupted=true; kill -TERM "$step" 2>/dev/null || true' TERM

# A trap ends `wait` early, with a status that is not the training's.
while
  interrupted=false status=0
  wait "$step" || status=$?
  $interrupted
do :; done
exit "$status"
