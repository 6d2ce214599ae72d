# shellcheck shell=bash
# shellcheck disable=SC2034 # scripts that source this file use its variables
# Shared by the launchers: errors, quoting, flags, dry runs, packing the checkout. Sourced, never run.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash $BASH_VERSION is too old for this script; install bash 4.4 or newer." >&2
  exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=false
verbose=true
declare -A setting=() # --NAME=VALUE; switches hold "true"
declare -a extra=()   # what follows --

# fail SENTENCE: prints an error and exits with code 2, like every command of the project.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

say() {
  printf '%s\n' "$*" >&2
}

# quoted WORD...: quotes words for any POSIX shell (printf %q would need bash there).
quoted() {
  local word rest text separator=''
  for word in "$@"; do
    text=$word
    if [[ ! $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      rest=$word text="'"
      while [[ $rest == *\'* ]]; do
        text+="${rest%%\'*}'\\''"
        rest=${rest#*\'}
      done
      text+="$rest'"
    fi
    printf '%s%s' "$separator" "$text"
    separator=' '
  done
}

# run WORD...: prints the command and runs it; a dry run only prints it.
run() {
  if $dry_run; then
    printf '%s\n' "$(quoted "$@")"
  else
    ! $verbose || say "+ $(quoted "$@")"
    "$@"
  fi
}

# choose_command "KNOWN ..." ARGUMENT...: sets `command`; --help anywhere before -- prints usage.
choose_command() {
  local known=$1 argument
  shift
  for argument in "$@"; do
    case $argument in
      --) break ;;
      -h | --help)
        usage
        exit 0
        ;;
    esac
  done
  command=${1-}
  [[ -n $command ]] || fail "no command given; choose among ${known// /, }, see --help."
  [[ " $known " == *" $command "* && $command != *" "* ]] ||
    fail "there is no command '$command'; choose among ${known// /, }, see --help."
}

# parse_flags "VALUED ..." "SWITCH ..." ARGUMENT...: fills `setting`, `extra` and `dry_run`.
# A flag named X-flag may be repeated; the array X_flags collects the values.
parse_flags() {
  local valued=" $1 " switches=" $2 dry-run " name value
  shift 2
  while (($#)); do
    [[ $1 == -- ]] && {
      extra=("${@:2}")
      break
    }
    [[ $1 == --* ]] || fail "'$1' is not a flag; see --help."
    name=${1%%=*} name=${name#--}
    [[ $name != config.* ]] || fail "--$name belongs to the training command; give it after --."
    if [[ $switches == *" $name "* ]]; then
      [[ $1 != *=* ]] || fail "--$name takes no value."
      setting[$name]=true
    elif [[ $valued == *" $name "* ]]; then
      if [[ $1 == *=* ]]; then
        value=${1#*=}
      else
        (($# > 1)) || fail "--$name needs a value, as in --$name=VALUE."
        value=$2
        shift
      fi
      [[ -n $value ]] || fail "--$name is empty; give a value or leave it out."
      if [[ $name == *-flag ]]; then
        local -n values=${name//-/_}s
        values+=("$value")
      else
        setting[$name]=$value
      fi
    else
      fail "there is no flag --$name; see --help."
    fi
    shift
  done
  [[ ${setting[dry-run]-} != true ]] || dry_run=true
}

# need NAME...: fails unless all these flags are given.
need() {
  local name
  for name in "$@"; do
    [[ -n ${setting[$name]-} ]] || fail "--$name is missing; see --help."
  done
}

# need_tool PROGRAM ADVICE: fails unless the program exists; a dry run needs none.
need_tool() {
  $dry_run || command -v "$1" >/dev/null || fail "$1 is not on PATH; $2."
}

# need_count NAME...: fails unless these flags, if given, are whole numbers of at least 1.
need_count() {
  local name
  for name in "$@"; do
    [[ ${setting[$name]-1} =~ ^[1-9][0-9]{0,5}$ ]] ||
      fail "--$name=${setting[$name]} is not a whole number from 1 on."
  done
}

# need_name LONGEST: fails unless clouds accept --name.
need_name() {
  need name
  if [[ ! ${setting[name]} =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || ((${#setting[name]} > $1)); then
    fail "--name=${setting[name]} is not a name of at most $1 small letters, digits and hyphens" \
      "that starts with a letter and does not end with a hyphen."
  fi
}

# need_lasting_workdir: requires a work directory that outlives the machines, to resume from.
# Training uses file system calls; gs:// would become a local folder of that name.
need_lasting_workdir() {
  need config workdir
  [[ ${setting[workdir]} == /* ]] ||
    fail "--workdir=${setting[workdir]} is not the absolute path of a folder that all workers share" \
      "and that outlives them; mount a shared file system or bucket there and give its path."
}

# need_tpu_type: sets `tpu_type` to the name that clouds use (v5litepod for v5e).
need_tpu_type() {
  need type
  [[ ${setting[type]} =~ ^(v2|v3|v4|v5e|v5litepod|v5p|v6e|tpu7x)-[0-9]+(x[0-9]+)*$ ]] ||
    fail "--type=${setting[type]} is not a TPU type; it is a generation (v2, v3, v4, v5e, v5p," \
      "v6e, tpu7x) and a size, as in v6e-256."
  tpu_type=${setting[type]/#v5e-/v5litepod-}
}

# train_arguments: sets `training` to the arguments of `python -m dinotxt_jax.train`.
train_arguments() {
  training=("--config=${setting[config]}" "--workdir=${setting[workdir]}" "${extra[@]}")
}

# pack FILE: packs the working tree (including uncommitted and new files, without ignored ones) into
# a .tar.gz. A second index leaves the user's index unchanged.
pack() {
  local -a staged=(env "GIT_INDEX_FILE=$1.index" git -C "$root")
  local tree
  run "${staged[@]}" add --all || return
  if $dry_run; then
    # shellcheck disable=SC2016 # printed, not expanded
    tree='"$('$(quoted "${staged[@]}" write-tree)')"'
    printf '%s %s\n' "$(quoted git -C "$root" archive --format=tar.gz --output="$1")" "$tree"
  else
    tree=$("${staged[@]}" write-tree) || return
    run git -C "$root" archive --format=tar.gz --output="$1" "$tree"
  fi
}

# make_room: sets `room` to a folder for temporary files, which is removed at the end.
make_room() {
  room=${TMPDIR:-/tmp}
  $dry_run && return
  room=$(mktemp -d)
  trap 'rm -rf "$room"' EXIT
}
