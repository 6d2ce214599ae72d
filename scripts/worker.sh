#!/usr/bin/env bash
# tpu_vm.sh runs this script on every worker of a TPU VM pod. It installs the project into a
# virtual environment and runs at most one command in the background.
#
#   worker.sh install [SCRIPT]        runs a script of the checkout, then installs the checkout into
#                                     ~/dinotxt_venv
#   worker.sh start WORD...           starts python -m WORD..., replacing a running command; words
#                                     NAME=VALUE in front of the module become variables
#   worker.sh progress [WORD...]      prints one line about the command with these words, or about
#                                     any: absent, running, lost (the machine restarted), exit CODE
#   worker.sh stop
#   worker.sh log LINES [follow]
set -euo pipefail

code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$HOME/dinotxt_venv
run=$HOME/dinotxt_train # .log, .pid, .arguments and .status (the exit code, once there is one)
grace=${DINOTXT_GRACE:-60} # seconds for a checkpoint between SIGTERM and SIGKILL

# Images of TPU VMs may have a Python that is too old or cannot create environments.
suitable_python() {
  local python
  for python in python3.13 python3.12 python3.11 python3; do
    if command -v "$python" >/dev/null && "$python" -c \
      'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$python"
      return
    fi
  done
  return 1
}

install_project() {
  local python
  cd "$code"
  (($# == 0)) || bash "$1"
  if [[ ! -x $venv/bin/python ]]; then
    if python=$(suitable_python); then
      "$python" -m venv "$venv"
    else
      python3 -m pip install --quiet --user uv
      python3 -m uv venv --quiet --seed --python 3.12 "$venv"
    fi
  fi
  "$venv/bin/python" -m pip install --quiet --upgrade pip
  "$venv/bin/python" -m pip install --quiet --editable '.[tpu,gcs]'
}

# The command line is checked, because after a reboot another process may have this id. kill with
# process id 1 would address all processes.
alive() {
  local pid=0
  [[ ! -f $run.pid ]] || pid=$(<"$run.pid")
  ((pid > 1)) && grep -qsa "worker.sh" "/proc/$pid/cmdline"
}

stop_training() {
  local pid second
  alive || return 0
  pid=$(<"$run.pid")
  kill -TERM -- "-$pid"
  for ((second = 0; second < grace * 10; second++)); do
    alive || return 0
    sleep 0.1
  done
  kill -KILL -- "-$pid"
}

start_training() {
  stop_training
  rm -f "$run.status"
  printf '%s\0' "$@" >"$run.arguments"
  # A new session outlives the connection and can be stopped as a group.
  setsid bash "$code/scripts/worker.sh" supervise "$@" </dev/null >>"$run.log" 2>&1 &
  printf '%s\n' "$!" >"$run.pid"
}

supervise() {
  local status=0
  trap : TERM # keep waiting for the training, which receives the signal too
  cd "$code"
  printf '=== %s\n' "$(date -u +%FT%TZ)"
  while [[ ${1-} =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; do
    export "${1?}"
    shift
  done
  "$venv/bin/python" -m "$@" || status=$?
  printf '%s\n' "$status" >"$run.status"
}

progress() {
  if ! [[ -f $run.pid ]]; then
    echo absent
  elif (($#)) && ! cmp -s "$run.arguments" <(printf '%s\0' "$@"); then
    echo absent
  elif [[ -f $run.status ]]; then
    echo "exit $(<"$run.status")"
  elif alive; then
    echo running
  else
    echo lost
  fi
}

command=${1-}
shift || true
case $command in
  install) install_project "$@" ;;
  start) start_training "$@" ;;
  supervise) supervise "$@" ;;
  stop) stop_training ;;
  progress) progress "$@" ;;
  log) tail -n "$1" ${2:+-F} "$run.log" ;;
  *)
    echo "error: worker.sh knows install, start, progress, stop and log, not '$command'." >&2
    exit 2
    ;;
esac
