#!/usr/bin/env bash
# One job on this host: SERVERS parameter servers and WORKERS workers under one torchrun.
#
#   launch/torchrun-single-host.sh
#   SERVERS=2 WORKERS=4 launch/torchrun-single-host.sh --help
#
# Every argument goes on to `psrpc train`.
set -euo pipefail

SERVERS=${SERVERS:-1}
WORKERS=${WORKERS:-2}

# Threads of each process. torchrun would choose 1 too, with a warning; more than
# cores / (SERVERS + WORKERS) makes the processes fight for the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# --standalone: torchrun finds a free port by itself, so two jobs do not collide.
# Ranks 0 to SERVERS-1 serve, the rest work. If one process fails, torchrun ends the others.
exec torchrun \
  --standalone \
  --nproc-per-node=$((SERVERS + WORKERS)) \
  -m psrpc train --servers "$SERVERS" "$@"
