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
declare -a envs=()    # values of --env

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
# --env and flags named X-flag may be repeated; the arrays `envs` and X_flags collect the values.
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
    [[ $name != config.* ]] || fail "--$name belongs to the command on the workers; give it after --."
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
      if [[ $name == env || $name == *-flag ]]; then
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
need_lasting_workdir() {
  [[ ${setting[run]-train} == train ]] || return 0
  need config workdir
  [[ ${setting[workdir]} == /* || ${setting[workdir]} == gs://?* ]] ||
    fail "--workdir=${setting[workdir]} is neither gs://BUCKET/... nor the absolute path of a folder" \
      "that all workers share and that outlives them; give one of these."
}

# need_tpu_type: sets `tpu_type` to the name that clouds use (v5litepod for v5e).
need_tpu_type() {
  need type
  [[ ${setting[type]} =~ ^(v2|v3|v4|v5e|v5litepod|v5p|v6e|tpu7x)-[0-9]+(x[0-9]+)*$ ]] ||
    fail "--type=${setting[type]} is not a TPU type; it is a generation (v2, v3, v4, v5e, v5p," \
      "v6e, tpu7x) and a size, as in v6e-256."
  tpu_type=${setting[type]/#v5e-/v5litepod-}
  local size=${tpu_type#*-} sizes=''
  case $tpu_type in
    v5litepod-* | v6e-*) sizes=' 1 4 8 16 32 64 128 256 ' ;; # counted in chips
    v2-*) sizes=' 8 32 128 256 512 ' ;;                      # counted in cores
    v3-*) sizes=' 8 32 64 128 256 512 1024 2048 ' ;;
    v4-* | v5p-*) [[ $size == *x* ]] || ((size % 8 == 0)) || sizes=' multiples of 8 ' ;;
  esac
  [[ -z $sizes || $size == *x* || $sizes == *" $size "* ]] ||
    fail "--type=${setting[type]} has a size that does not exist; choose among$sizes" "."
}

# command_words: sets `words` to what workers run after `python -m`: variables as NAME=VALUE, the
# module, and its arguments.
command_words() {
  local variable name=${setting[run]-train} module
  case $name in
    train | precompute | evaluate | embed | ingest | curate) module=dinotxt_jax.$name ;;
    convert) module=weights_convert ;;
    *) fail "--run=$name is unknown; choose among train, precompute, evaluate, embed, ingest, curate," \
      "convert." ;;
  esac
  for variable in "${envs[@]}"; do
    [[ $variable =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] ||
      fail "--env=$variable is not of the form NAME=VALUE."
  done
  words=("${envs[@]}" "$module" ${setting[config]:+"--config=${setting[config]}"}
    ${setting[workdir]:+"--workdir=${setting[workdir]}"} "${extra[@]}")
}

# check_settings: has the command on the workers check its settings here, before machines are paid
# for. Takes --python, or the interpreter of the checkout, or python3.
check_settings() {
  local python text candidate
  local -a arguments=("${words[@]:${#envs[@]}}")
  [[ ${setting[config]-} ]] || return 0
  for candidate in "${setting[python]-}" "$root/.venv/bin/python" python3; do
    python=$candidate
    [[ -z $python ]] || ! command -v "$python" >/dev/null ||
      ! "$python" -c 'import dinotxt_jax.cli' 2>/dev/null || break
    python=''
  done
  if [[ -z $python ]]; then
    say "the settings are not checked here, as no interpreter has dinotxt_jax installed; make one" \
      "(make quickstart does) or give --python=FILE."
    return 0
  fi
  text=$(cd "$root" && "$python" -m "${arguments[@]}" --print_config 2>&1 >/dev/null) || {
    text=${text##*error: }
    fail "${text:-the settings cannot be checked.}"
  }
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
