#!/usr/bin/env bash
# Trains on Google Kubernetes Engine through XPK; see --help and docs/pods.md.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'END'
scripts/gke.sh COMMAND --name=NAME --cluster=NAME [FLAGS] [-- --config.KEY=VALUE ...]

Trains, or runs another command, on TPU slices of a GKE cluster, as a workload of XPK.

Commands (all take the same flags and use those they need):
  create-cluster   creates a cluster with --slices slices of --type; run again to change the number
  image            builds the working tree into --image (docker) and pushes it
  train            submits the workload; it restarts after preemption, at most --restarts times, and
                   continues from the newest checkpoint
  status           the workload in the cluster's list
  logs             log of the first worker of every slice (--lines, --follow; kubectl)
  delete           deletes the workload
  delete-cluster   deletes the cluster and all its workloads

Flags:
  --name=NAME           the workload
  --cluster=NAME        the cluster
  --project=PROJECT     default: gcloud's
  --zone=ZONE           default: gcloud's
  --type=TYPE           of a slice, such as v6e-256, v5p-128, v5e-64, tpu7x-4x4x4
  --slices=N            default: 1
  --spot | --on-demand | --reservation=NAME    capacity of create-cluster
  --image=IMAGE         such as REGION-docker.pkg.dev/PROJECT/REPOSITORY/dinotxt_jax:TAG
  --restarts=N          default: 50
  --config=FILE         config file, relative to the checkout
  --workdir=DIR         gs://BUCKET/..., or the absolute path of a folder that all pods share (see
                        --xpk-flag=--storage=)
  --run=COMMAND         train (default), precompute, evaluate, embed, ingest, curate or convert
  --env=NAME=VALUE      environment variable of the command, such as LIBTPU_INIT_ARGS or XLA_FLAGS;
                        repeatable
  --python=FILE         interpreter here that checks the settings; default: .venv/bin/python
  --lines=N --follow    number of lines of the log (default: 50), and follow it
  --xpk-flag=FLAG       additional flag of the xpk command; repeatable
  --dry-run             print the commands, run nothing

Arguments after -- go to the command on the workers unchanged. The settings are checked here first.
END
}

declare -a xpk_flags=() words=() capacity=()
choose_command "create-cluster image train status logs delete delete-cluster" "$@"
parse_flags "name cluster project zone type slices reservation image restarts config workdir lines \
run env python xpk-flag" "spot on-demand follow" "${@:2}"
need_count slices restarts lines
place=(${setting[project]:+"--project=${setting[project]}"} ${setting[zone]:+"--zone=${setting[zone]}"})
slices=${setting[slices]:-1}

on_cluster() {
  need cluster
  need_tool xpk "pip install xpk"
  run xpk "$1" "$2" --cluster="${setting[cluster]}" "${place[@]}" "${@:3}" "${xpk_flags[@]}"
}

case $command in
  create-cluster)
    need_tpu_type
    [[ -z ${setting[spot]-} ]] || capacity+=(--spot)
    [[ -z ${setting[on-demand]-} ]] || capacity+=(--on-demand)
    [[ -z ${setting[reservation]-} ]] || capacity+=("--reservation=${setting[reservation]}")
    ((${#capacity[@]} == 1)) ||
      fail "${#capacity[@]} kinds of capacity given; choose one of --spot, --on-demand and" \
        "--reservation=NAME."
    on_cluster cluster create --tpu-type="$tpu_type" --num-slices="$slices" "${capacity[@]}"
    ;;
  image)
    need image
    need_tool docker "install Docker"
    need_tool git "install git"
    make_room
    archive=$room/dinotxt_jax.tar.gz
    pack "$archive"
    build=(docker build --platform=linux/amd64 --file=scripts/Dockerfile "--tag=${setting[image]}" -)
    if $dry_run; then
      printf '%s < %s\n' "$(quoted "${build[@]}")" "$(quoted "$archive")"
    else
      run "${build[@]}" <"$archive"
    fi
    run docker push "${setting[image]}"
    ;;
  train)
    need_name 40
    need image
    need_tpu_type
    need_lasting_workdir
    command_words
    [[ ${words[*]} != *$'\n'* ]] ||
      fail "an argument of the command has a line break, which XPK cannot pass on."
    check_settings
    program=(python -m "${words[@]:${#envs[@]}}")
    ((${#envs[@]} == 0)) || program=(env "${envs[@]}" "${program[@]}")
    on_cluster workload create --workload="${setting[name]}" --tpu-type="$tpu_type" \
      --num-slices="$slices" --docker-image="${setting[image]}" \
      --max-restarts="${setting[restarts]:-50}" \
      --command="$(quoted "${program[@]}")"
    ;;
  status)
    need_name 40
    on_cluster workload list --filter-by-job="${setting[name]}"
    ;;
  logs)
    need_name 40
    need_tool kubectl "install kubectl and get the cluster's credentials with gcloud"
    job=jobset.sigs.k8s.io/jobset-name=${setting[name]}
    run kubectl logs --selector="$job,batch.kubernetes.io/job-completion-index=0" --prefix \
      --max-log-requests=64 --tail="${setting[lines]:-50}" ${setting[follow]:+--follow}
    ;;
  delete)
    need_name 40
    on_cluster workload delete --workload="${setting[name]}"
    ;;
  delete-cluster) on_cluster cluster delete ;;
esac
