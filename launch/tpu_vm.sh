#!/usr/bin/env bash
# Run the same command on every worker of a TPU VM slice (Compute Engine):
#   launch/tpu_vm.sh NAME ZONE --config configs/clip.py:l14,tiled --workdir /shared/runs/l14
# /shared is mounted on all workers (Filestore, say); the checkout lies in ~/multimodal, set up with pip install -e '.[tpu]'.
# Workers find each other by the metadata server. While it exits with 75 (asked to end and saved) or
# a worker was lost, the command is given again and goes on from the last checkpoint.
set -u
name=${1:?name of the TPU} zone=${2:?zone}
shift 2
arguments=$(printf '%q ' "$@")
for attempt in $(seq 100); do
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="cd ~/multimodal && .venv/bin/python train.py $arguments"
  code=$?
  case $code in
    0 | 2) exit "$code" ;;
  esac
  echo "attempt $attempt ended with $code; again in a minute" >&2
  sleep 60
done
exit "$code"
