#!/bin/bash
# Several runs of a program on one GPU, under PJM (Fujitsu TCS, as on the Flow Type II subsystem).
#
# The same three steps as with ACB: start an assigner, run programs under agarun, stop it.
#
#   pjsub share-one-gpu.sh
#
# To adapt: the resource group, the number of runs, the program.

#PJM -L rscgrp=cx-share
#PJM -L gpu=1
#PJM -L elapse=4:00:00
#PJM -j

set -euo pipefail

runs=${RUNS:-2}
program=${PROGRAM:-./predict}

cd "${PJM_O_WORKDIR:-$PWD}"

# Other jobs, of yours or of others, may run on this node: a port and a pid file for this job alone.
# agarun finds the assigner by the two variables.
job=${PJM_JOBID:-$$}
export AGA_GPU_ALLOC_SERVER_ADDRESS=127.0.0.1
export AGA_GPU_ALLOC_SERVER_PORT=$((20000 + ${job%%[^0-9]*} % 10000))
assigner=(gpu_assigner --port "$AGA_GPU_ALLOC_SERVER_PORT" --pid-file-path "$PWD/assigner-$job.pid")

# The GPUs that PJM gave the job. On a node of your own, --gpu-list 0 would leave the others alone.
"${assigner[@]}" start --log-path "$PWD/assigner-$job.log"

# However the script ends, the programs and the assigner end with it. At the elapse limit PJM sends
# SIGXCPU, and SIGKILL ten seconds later.
pids=()
# shellcheck disable=SC2317  # the trap calls it
finish() {
  ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
  "${assigner[@]}" stop
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 152' XCPU

for ((i = 1; i <= runs; i++)); do
  agarun -- "$program" "$i" >"run-$job-$i.log" 2>&1 &
  pids+=($!)
done

# Programs run in the background, so that the signals above interrupt the waiting.
failed=0
for pid in "${pids[@]}"; do
  wait "$pid" || failed=1
done
pids=()
exit "$failed"
