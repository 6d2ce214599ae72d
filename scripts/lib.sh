# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this use what it sets
# What the launchers share: errors, quoting, flags, dry runs, the packed checkout. Sourced, never run.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash $BASH_VERSION is too old for this script; install bash 4.4 or newer." >&2
  exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=false
verbose=true
declare -A setting=() # --NAME=VALUE; switches hold "true"
declare -a extra=()   # what follows --

# fail SENTENCE: ends the script as every command of the project ends on a mistake.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

say() {
  printf '%s\n' "$*" >&2
}

# quoted WORD...: the words as every POSIX shell reads them back (printf %q needs bash there).
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

# run WORD...: says the command and runs it; a dry run prints it and runs nothing.
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
# A flag called X-flag may be repeated; its values are collected in the array X_flags.
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

# need NAME...: the flags that a command cannot do without.
need() {
  local name
  for name in "$@"; do
    [[ -n ${setting[$name]-} ]] || fail "--$name is missing; see --help."
  done
}

# need_tool PROGRAM ADVICE: a dry run needs none.
need_tool() {
  $dry_run || command -v "$1" >/dev/null || fail "$1 is not on PATH; $2."
}

# need_count NAME...: flags that are whole numbers from 1 on, where given.
need_count() {
  local name
  for name in "$@"; do
    [[ ${setting[$name]-1} =~ ^[1-9][0-9]{0,5}$ ]] ||
      fail "--$name=${setting[$name]} is not a whole number from 1 on."
  done
}

# need_name LONGEST: what clouds accept as a name.
need_name() {
  need name
  if [[ ! ${setting[name]} =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || ((${#setting[name]} > $1)); then
    fail "--name=${setting[name]} is not a name of at most $1 small letters, digits and hyphens" \
      "that starts with a letter and does not end with a hyphen."
  fi
}

# need_lasting_workdir: a work directory that outlives the machines, or nothing could be resumed.
# Training writes with the calls of a file system; gs:// would become a folder of that name.
need_lasting_workdir() {
  need config workdir
  [[ ${setting[workdir]} == /* ]] ||
    fail "--workdir=${setting[workdir]} is not the absolute path of a folder that all workers share" \
      "and that outlives them; mount a shared file system or bucket there and give its path."
}

# need_tpu_type: `tpu_type` becomes the name that clouds use; people also say v5e.
need_tpu_type() {
  need type
  [[ ${setting[type]} =~ ^(v2|v3|v4|v5e|v5litepod|v5p|v6e|tpu7x)-[0-9]+(x[0-9]+)*$ ]] ||
    fail "--type=${setting[type]} is not a TPU type; it is a generation (v2, v3, v4, v5e, v5p," \
      "v6e, tpu7x) and a size, as in v6e-256."
  tpu_type=${setting[type]/#v5e-/v5litepod-}
}

# train_arguments: `training` becomes what follows `python -m dinotxt_jax.train`.
train_arguments() {
  training=("--config=${setting[config]}" "--workdir=${setting[workdir]}" "${extra[@]}")
}

# pack FILE: the working tree as it is (uncommitted and new files too, ignored ones not) in a
# .tar.gz. A second index leaves the person's own alone.
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

# make_room: `room` becomes a folder for temporary files, removed at the end.
make_room() {
  room=${TMPDIR:-/tmp}
  $dry_run && return
  room=$(mktemp -d)
  trap 'rm -rf "$room"' EXIT
}
