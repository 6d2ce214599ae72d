#!/usr/bin/env bash
# Trains on TPU VM pods through gcloud; see --help and docs/pods.md.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'END'
scripts/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [FLAGS] [-- --config.KEY=VALUE ...]

Trains, or runs another command, on a TPU VM pod or on several slices of one queued resource.

Commands (all take the same flags and use those they need):
  create    creates the pod (--type), or requests it through the queue (--queued, --slices)
  install   copies the working tree (or clones --git) to all workers and installs it there
  train     starts --run on all workers in the background, replacing a running one
  status    state of the pod, and of training on every worker
  logs      end of the log of one worker (--worker, --lines, --follow)
  stop      stops training on all workers
  watch     create, install and train as needed; re-creates a preempted pod and restarts,
            until training has ended. Training continues from the newest checkpoint.
  delete    deletes the pod, or the queued resource with all its slices

Flags:
  --name=NAME           the pod, the queued resource, and the prefix of its slices
  --zone=ZONE           such as us-east5-b
  --project=PROJECT     default: gcloud's
  --type=TYPE           such as v6e-256, v5p-128, v5e-64 (of one slice)
  --slices=N            several pods of that type, joined by the data centre network (queued)
  --queued              use a queued resource, which waits for capacity
  --spot                use capacity that may be preempted
  --runtime=VERSION     software of the VMs; default: the recommended one for JAX
  --git=URL             clone this on the workers instead of copying the working tree
  --ref=REF             branch, tag or commit of --git; default: its main branch
  --setup=FILE          script in the checkout that install runs on every worker first, for example
                        to mount the shared folder
  --config=FILE         config file, relative to the checkout
  --workdir=DIR         gs://BUCKET/..., or the absolute path of a folder that all workers share
  --run=COMMAND         train (default), precompute, evaluate, embed, ingest, curate or convert
  --env=NAME=VALUE      environment variable of the command, such as LIBTPU_INIT_ARGS or XLA_FLAGS;
                        repeatable
  --python=FILE         interpreter here that checks the settings; default: .venv/bin/python
  --worker=N --slice=N  worker and slice of the log; default: 0 and 0
  --lines=N --follow    number of lines of the log (default: 50), and follow it
  --poll=SECONDS        polling interval of watch; default: 60
  --max-failures=N      crashes on the same pod before watch gives up; default: 3
  --delete-after        watch deletes the pod when training has succeeded
  --create-flag=FLAG    additional flag of gcloud's create; repeatable
  --connect-flag=FLAG   additional flag of gcloud's ssh and scp; repeatable
  --dry-run             print the commands, run nothing

Arguments after -- go to the command on the workers unchanged. Before a pod is created, the settings
are checked here.
END
}

declare -a create_flags=() connect_flags=() words=()
choose_command "create install train status logs stop watch delete" "$@"
parse_flags "name zone project type slices runtime git ref setup config workdir worker slice lines poll \
max-failures run env python create-flag connect-flag" "queued spot follow delete-after" "${@:2}"
need_name 48
need zone
need_count slices lines poll max-failures
need_tool gcloud "install the Google Cloud CLI"

name=${setting[name]} slices=${setting[slices]:-1} git=${setting[git]-}
place=("--zone=${setting[zone]}" ${setting[project]:+"--project=${setting[project]}"})
queued=${setting[queued]:-false}
((slices == 1)) || queued=true
if $queued; then kind='queued-resources'; else kind='tpu-vm'; fi
worker=dinotxt_jax/scripts/worker.sh

default_runtime() {
  case $tpu_type in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  local runtime=${setting[runtime]:-$(default_runtime)}
  local -a flags=("--accelerator-type=$tpu_type")
  if ! $queued; then
    flags+=("--version=$runtime")
  elif ((slices == 1)); then
    flags+=("--runtime-version=$runtime" "--node-id=$name")
  else
    flags+=("--runtime-version=$runtime" "--node-count=$slices" "--node-prefix=$name")
  fi
  [[ -z ${setting[spot]-} ]] || flags+=(--spot)
  run gcloud compute tpus "$kind" create "$name" "${place[@]}" "${flags[@]}" "${create_flags[@]}"
}

delete() {
  local -a flags=(--quiet)
  $queued && flags+=(--force) # with its nodes
  run gcloud compute tpus "$kind" delete "$name" "${place[@]}" "${flags[@]}"
}

# at WORKER SLICE COMMAND: runs it there; both may be "all".
at() {
  local -a flags=("--worker=$1")
  $queued && flags+=("--node=$2")
  run gcloud compute tpus "$kind" ssh "$name" "${place[@]}" "${flags[@]}" "${connect_flags[@]}" \
    --command="$3"
}

everywhere() {
  at all all "$1"
}

install() {
  local archive=$room/dinotxt_jax.tar.gz clone unpack prepare
  prepare=$(quoted bash "$worker" install ${setting[setup]:+"${setting[setup]}"})
  unpack='rm -rf dinotxt_jax && mkdir dinotxt_jax && tar -xzf dinotxt_jax.tar.gz -C dinotxt_jax'
  local -a flags=(--worker=all)
  $queued && flags+=(--node=all)
  if [[ -n $git ]]; then
    clone="rm -rf dinotxt_jax && git clone --quiet $(quoted "$git") dinotxt_jax"
    [[ -z ${setting[ref]-} ]] ||
      clone+=" && git -C dinotxt_jax checkout --quiet $(quoted "${setting[ref]}")"
    everywhere "$clone && $prepare"
  else
    pack "$archive" &&
      run gcloud compute tpus "$kind" scp "$archive" "$name:dinotxt_jax.tar.gz" "${place[@]}" \
        "${flags[@]}" "${connect_flags[@]}" &&
      everywhere "$unpack && $prepare"
  fi
}

train() {
  everywhere "bash $worker start $(quoted "${words[@]}")"
}

# Workers without a checkout report "absent"; a failed connection must not look like that.
workers() {
  local asked
  asked=$(quoted bash "$worker" progress "${words[@]}")
  everywhere "if [ -f $worker ]; then $asked; else echo absent; fi"
}

# progress: prints one word for all workers (absent, running, failed, refused, finished, unknown).
progress() {
  local lines
  lines=$(
    verbose=false
    workers 2>"$room/errors"
  ) || {
    cat "$room/errors" >&2
    lines=''
  }
  case $'\n'$lines$'\n' in
    # 2: a mistake in the settings; 3: a loss that is not finite. A restart cures neither.
    *$'\nexit '[23]$'\n'*) echo refused ;;
    *$'\nabsent\n'* | *$'\nlost\n'*) echo absent ;; # lost: mounts of --setup are lost too
    *$'\nexit '[1-9]*) echo failed ;;
    *$'\nrunning\n'*) echo running ;;
    *$'\nexit 0\n'*) echo finished ;;
    *) echo unknown ;;
  esac
}

# described KIND NAME FORMAT: prints gcloud's answer, ABSENT, or UNKNOWN (with the reason on stderr).
described() {
  local answer
  local -a describe=(gcloud compute tpus "$1" describe "$2" "${place[@]}" "--format=value($3)")
  if $dry_run; then
    run "${describe[@]}"
  elif answer=$("${describe[@]}" 2>"$room/errors"); then
    printf '%s\n' "${answer:-UNKNOWN}"
  elif grep -qiE 'not.?found' "$room/errors"; then
    echo ABSENT
  else
    cat "$room/errors" >&2
    echo UNKNOWN
  fi
}

# pod_state: prints the state of the pod; with several slices, of the first that is not READY.
pod_state() {
  local state node
  local -a nodes=("$name")
  if ! $queued; then
    described tpu-vm "$name" state
    return
  fi
  ((slices == 1)) || mapfile -t nodes < <(seq -f "$name-%.0f" 0 $((slices - 1)))
  state=$(described queued-resources "$name" state.state)
  if [[ $state == ACTIVE ]]; then
    for node in "${nodes[@]}"; do
      state=$(described tpu-vm "$node" state)
      [[ $state == READY ]] || break
    done
    # The request exists but a node of it is gone: the whole request must be repeated.
    [[ $state != ABSENT ]] || state=TERMINATED
  fi
  printf '%s\n' "$state"
}

# advance: starts or checks training on a pod that is READY. Returns 0 to poll again; ends the script
# when training has ended.
advance() {
  local found
  found=$(progress)
  say "$name is READY, training is $found."
  case $found in
    running | unknown) return ;;
    finished)
      [[ -z ${setting[delete-after]-} ]] || delete
      exit 0
      ;;
    refused)
      say "training ended with an error that a restart cannot cure: see scripts/tpu_vm.sh logs."
      exit 1
      ;;
    failed)
      failures=$((failures + 1))
      ((failures < max_failures)) && train && return
      ;;
    absent)
      install && train && return
      failures=$((failures + 1))
      ;;
  esac
  if ((failures >= max_failures)); then
    say "gave up after $failures failures on this pod: see scripts/tpu_vm.sh logs."
    exit 1
  fi
}

watch() {
  local state known=false
  failures=0
  while true; do
    state=$(pod_state)
    case $state in
      READY) advance ;;
      ABSENT)
        failures=0
        # The usual reason is missing capacity; the next attempt may succeed.
        create && known=true && continue
        ;;
      PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        say "$name is $state: it is deleted and created again."
        delete || true
        ;;
      UNKNOWN) $known || exit 1 ;; # from the start: a wrong project or zone, no permission
      *) say "$name is $state." ;;
    esac
    known=true
    sleep "${setting[poll]:-60}"
  done
}

# watch_plan: the commands of a watch, in their order where nothing goes wrong and where it does.
watch_plan() {
  echo "# every ${setting[poll]:-60} s"
  described "$kind" "$name" "$state_field"
  echo "# while there is none"
  create
  echo "# once it is READY"
  install
  train
  echo "# until all workers have ended"
  workers
  echo "# when it is PREEMPTED, TERMINATED, SUSPENDED or FAILED, before creating it again"
  delete
}

max_failures=${setting[max-failures]:-3}
if $queued; then state_field=state.state; else state_field=state; fi
case $command in
  create | watch)
    need_tpu_type
    [[ $tpu_type != tpu7x-* ]] ||
      fail "--type=${setting[type]} exists on GKE only; use scripts/gke.sh."
    ;;&
  train | watch)
    need_lasting_workdir
    command_words
    check_settings
    ;;&
  install | watch) [[ -n $git ]] || need_tool git "install git, or give --git=URL" ;;&
  install | watch | status) make_room ;;
esac
case $command in
  status)
    described "$kind" "$name" "$state_field"
    workers
    ;;
  logs)
    at "${setting[worker]:-0}" "${setting[slice]:-0}" \
      "bash $worker log ${setting[lines]:-50}${setting[follow]:+ follow}"
    ;;
  stop) everywhere "bash $worker stop" ;;
  watch) if $dry_run; then watch_plan; else watch; fi ;;
  *) "$command" ;;
esac
