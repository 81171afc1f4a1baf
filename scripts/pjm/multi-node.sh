#!/bin/bash
# Several nodes under PJM, the programs of each node sharing its GPUs.
#
# PJM names the job's nodes in the file $PJM_O_NODEINF, an address on each line. The job writes ACB's
# multinode.toml from it, then runs itself once on every node: there it starts that node's assigner,
# runs the node's programs, and stops the assigner. The first node's assigner is the controller:
# `gpu_assigner --multinode status` there shows every node.
#
#   pjsub multi-node.sh

#PJM -L rscgrp=cx-small
#PJM -L node=2
#PJM -L elapse=4:00:00
#PJM --mpi proc=2
#PJM -j

set -euo pipefail

per_node=${PER_NODE:-4}
program=${PROGRAM:-./predict}

# What runs on every node. Programs are told which they are, of all: their first argument.
run_node() { # FOLDER INDEX-OF-NODE
  local folder=$1 index=$2 failed=0 i pid
  # multinode.toml is looked for in $HOME/.acb: a home of the job's own keeps two jobs apart.
  # Sockets lie on the node itself, and their paths must be short.
  sockets=$(mktemp -d /tmp/acb-XXXXXX)
  assigner=(env HOME="$folder" gpu_assigner --multinode --socket-dir "$sockets")
  "${assigner[@]}" start
  # However this ends, the node's programs and its assigner end with it.
  pids=()
  trap finish EXIT
  trap 'exit 143' TERM
  trap 'exit 152' XCPU
  for ((i = 0; i < per_node; i++)); do
    agarun -- "$program" $((index * per_node + i)) >"run-$index-$i.log" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || failed=1
  done
  pids=()
  return "$failed"
}

finish() {
  ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
  "${assigner[@]}" stop
  rm -rf "$sockets"
}

if [[ ${1-} == --node ]]; then
  # The environment is not passed on to the other nodes on every system: all comes as arguments.
  folder=$2 work=$3
  cd "$work"
  host=$(hostname)
  index=0
  while read -r name address port; do
    if [[ $name == "$host" ]]; then
      export AGA_GPU_ALLOC_SERVER_ADDRESS=$address AGA_GPU_ALLOC_SERVER_PORT=$port
      run_node "$folder" "$index"
      exit
    fi
    index=$((index + 1))
  done <"$folder/hosts"
  echo "$host is not among the nodes of the job: $(cut -d' ' -f1 "$folder/hosts" | tr '\n' ' ')" >&2
  exit 1
fi

: "${PJM_O_NODEINF:?is not set: submit this script with pjsub}"
work=${PJM_O_WORKDIR:-$PWD}
job=${PJM_JOBID:-$$}
port=$((20000 + ${job%%[^0-9]*} % 10000))
# On a file system that every node sees; it holds the assigners' logs.
folder=$work/acb-$job
mkdir -p "$folder/.acb"
# PJM runs a copy of this script that the other nodes may not see.
cp "$0" "$folder/job.sh"

# With several virtual nodes on a node its address comes several times.
role=controller
awk '!seen[$0]++' "$PJM_O_NODEINF" | while read -r address; do
  [[ $address ]] || continue
  name=$(pjrsh "$address" hostname </dev/null)
  echo "$name $address $port" >>"$folder/hosts"
  cat >>"$folder/.acb/multinode.toml" <<TOML
["$name"]
type = "$role"
ipaddr = "$address"
port = $port
logfile = "$folder/assigner-$name.log"
pidfile = "$folder/assigner-$name.pid"
TOML
  role=executor
done

# Once on every node.
mpiexec -machinefile "$PJM_O_NODEINF" -npernode 1 bash "$folder/job.sh" --node "$folder" "$work"
