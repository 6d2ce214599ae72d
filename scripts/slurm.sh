#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster; see --help and docs/pods.md.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'END'
scripts/slurm.sh COMMAND --name=NAME [FLAGS] [-- --config.KEY=VALUE ...]

Trains, or runs another command, on GPU nodes. All nodes must share the file system with this checkout, the environment and the
data.

Commands (all take the same flags and use those they need):
  train    submits the job; after preemption, a lost node or near the time limit it is requeued and
           continues from the newest checkpoint
  status   the job in the queue
  logs     end of the newest log (--lines, --follow)
  cancel   cancels the job

Flags:
  --name=NAME           name of the job
  --nodes=N             default: 1
  --gpus=N              GPUs per node; default: 8
  --processes=gpu|node  one process per GPU (default), or per node
  --cpus=N              cores per process; default: Slurm's
  --time=LIMIT          for example 24:00:00; default: the partition's
  --partition=NAME      default: Slurm's
  --account=NAME        default: Slurm's
  --python=FILE         interpreter with the project installed; default: .venv/bin/python
  --logs=DIR            default: runs/slurm
  --config=FILE         config file, relative to the checkout
  --workdir=DIR         a folder, relative to the checkout or absolute, or gs://BUCKET/...
  --run=COMMAND         train (default), precompute, evaluate, embed, ingest, curate or convert
  --env=NAME=VALUE      environment variable of the command, such as XLA_FLAGS; repeatable
  --lines=N --follow    number of lines of the log (default: 50), and follow it
  --sbatch-flag=FLAG    additional flag of sbatch; repeatable
  --dry-run             print the commands, run nothing

Arguments after -- go to the command on the nodes unchanged. The settings are checked here first.
END
}

declare -a sbatch_flags=() words=()
choose_command "train status logs cancel" "$@"
parse_flags "name nodes gpus processes cpus time partition account python logs config workdir lines \
run env sbatch-flag" "follow" "${@:2}"
need_name 48
need_count nodes gpus cpus lines
cd "$root"
name=${setting[name]} logs=${setting[logs]:-runs/slurm} gpus=${setting[gpus]:-8}

train() {
  local python=${setting[python]:-.venv/bin/python} processes=${setting[processes]:-gpu} tasks
  case $processes in
    gpu) tasks=$gpus ;;
    node) tasks=1 ;;
    *) fail "--processes=$processes is unknown; choose gpu or node." ;;
  esac
  $dry_run || command -v "$python" >/dev/null ||
    fail "there is no interpreter $python; make one (make quickstart does) or give --python=FILE."
  command_words
  check_settings
  run mkdir -p "$logs"
  # B: and the time before the limit are for the trap in slurm_job.sh.
  run sbatch --job-name="$name" --nodes="${setting[nodes]:-1}" --ntasks-per-node="$tasks" \
    --gpus-per-node="$gpus" ${setting[cpus]:+"--cpus-per-task=${setting[cpus]}"} \
    ${setting[time]:+"--time=${setting[time]}"} \
    ${setting[partition]:+"--partition=${setting[partition]}"} \
    ${setting[account]:+"--account=${setting[account]}"} \
    --requeue --signal=B:USR1@180 --open-mode=append --output="$logs/$name-%j.log" \
    --chdir="$root" "${sbatch_flags[@]}" scripts/slurm_job.sh "$python" "$processes" "$gpus" \
    "${words[@]}"
}

show_log() {
  local log newest=''
  for log in "$logs/$name"-*.log; do
    [[ ! -f $log ]] || [[ -n $newest && $newest -nt $log ]] || newest=$log
  done
  [[ -n $newest ]] || $dry_run || fail "there is no log $logs/$name-*.log yet."
  run tail -n "${setting[lines]:-50}" ${setting[follow]:+-F} "${newest:-$logs/$name-JOB.log}"
}

case $command in
  train)
    [[ ${setting[run]-train} != train ]] || need config workdir
    need_tool sbatch "run this on a login node of the Slurm cluster"
    train
    ;;
  status)
    need_tool squeue "run this on a login node of the Slurm cluster"
    run squeue --name="$name" --user="$(id -un)"
    ;;
  logs) show_log ;;
  cancel)
    need_tool scancel "run this on a login node of the Slurm cluster"
    run scancel --name="$name" --user="$(id -un)"
    ;;
esac
