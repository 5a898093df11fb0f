#!/usr/bin/env bash
# One job on several hosts, without ssh: run this on each of them, in any order.
#
#   HEAD=node1 NODES=3 launch/torchrun-multi-node.sh --servers 3 --server-placement spread
#
# HEAD is the name of one of the hosts as the others know it (also if it takes its own name for
# 127.0.1.1), NODES how many there are, PROCESSES how many servers and workers each has (2). Every
# argument goes on to `psrpc train`, and must be the same everywhere. ID tells jobs apart that share
# a HEAD and PORT.
set -euo pipefail

: "${HEAD:?name one of the hosts}" "${NODES:?say how many hosts there are}"

# Threads of each process, see torchrun-single-host.sh.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# If one process fails, torchrun ends the others, on all hosts. To lose only what died, start
# `psrpc train --isolate --interface NAME` on one host and `psrpc join ADDRESS` on the others.
exec torchrun \
  --nnodes="$NODES" \
  --nproc-per-node="${PROCESSES:-2}" \
  --rdzv-backend=c10d \
  --rdzv-endpoint="$HEAD:${PORT:-29500}" \
  --rdzv-id="${ID:-psrpc}" \
  -m psrpc train "$@"
