#!/usr/bin/env bash
# One job on this host in which a crash touches no other process, and the crashed one comes back.
#
#   launch/isolated-single-host.sh
#   SERVERS=2 WORKERS=4 launch/isolated-single-host.sh --checkpoint-dir checkpoints --resume auto
#
# Every argument goes on to `psrpc train`. The first line that it shows is the address at which
# more workers may join from another terminal: psrpc join 127.0.0.1:PORT
set -euo pipefail

SERVERS=${SERVERS:-1}
WORKERS=${WORKERS:-2}

# Threads of each process, see torchrun-single-host.sh.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# --isolate: every server and worker under an elastic launch of its own, which starts it again when
# it dies, up to --max-restarts times. A worker that comes back takes up samples where others are;
# a server that dies ends the job (a resumed one goes on from the last checkpoint).
exec psrpc train --isolate --servers "$SERVERS" --workers "$WORKERS" "$@"
