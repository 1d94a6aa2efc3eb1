#!/bin/bash
# A study on a Ray cluster. On the first machine, on every other one, and then on any of them, in the folder of the runs:
#   bash examples/cluster/ray_study.sh head
#   bash examples/cluster/ray_study.sh join FIRST:6379
#   bash examples/cluster/ray_study.sh run FIRST:6379 guidelines --seeds 3 --gpus-per-run 0.5
# `ray stop` on each of them ends the cluster.
set -euo pipefail
export RAY_USAGE_STATS_ENABLED=0

case "${1:-}" in
  head) exec ray start --head --port 6379 --include-dashboard false "${@:2}" ;;
  join) exec ray start --address "$2" "${@:3}" ;;
  run) RAY_ADDRESS=$2 exec robustill study "${@:3}" --engine ray ;;
  *) sed -n '2,6s/^# //p' "$0" >&2 && exit 2 ;;
esac
