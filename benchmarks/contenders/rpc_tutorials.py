"""The parameter server of PyTorch's RPC tutorials, with the transports that torch chooses.

A server object behind an RRef, a lock around its model; a worker sends its gradients
with `rpc_sync` and gets weights back with the answer. Asynchronous: each call is one
optimizer step ("Implementing a Parameter Server Using Distributed RPC Framework").
Synchronous: an `async_execution` method collects the gradients of all workers in its
model and answers all of them after one step ("Batch RPC Processing Using Asynchronous
Executions"). Where the tutorial answers with a pickled module, this answers with its
tensors, which is cheaper.

The default transports poll without pause, so these processes are frozen between turns.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence

import torch
import torch.distributed.rpc as rpc
from torch import Tensor

from benchmarks.contenders.job import Job
from benchmarks.member import Stage
from benchmarks.processes import Part
from benchmarks.workload import Workload

SYNC = "RPC tutorial sync"
ASYNC = "RPC tutorial async"
_SERVER = "server"


class Server:
    """The parameter server."""

    def __init__(self, workload: Workload, workers: int) -> None:
        self._model = workload.model()
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=workload.lr)
        self._workers = workers
        self._lock = threading.Lock()
        self._arrived = 0
        self._round: torch.futures.Future[list[Tensor]] = torch.futures.Future()

    def weights(self) -> list[Tensor]:
        """The parameters themselves; they are copied when they are sent."""
        return [parameter.detach() for parameter in self._model.parameters()]

    def apply(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Make a step of one worker's gradients."""
        with self._lock:
            self._add(gradients)
            self._step()
            return self.weights()

    def join(self, gradients: Sequence[Tensor]) -> torch.futures.Future[list[Tensor]]:
        """Make a step of all workers' gradients when the last of them comes."""
        with self._lock:
            self._add(gradients)
            self._arrived += 1
            answer = self._round
            if self._arrived == self._workers:
                for parameter in self._model.parameters():
                    assert parameter.grad is not None
                    parameter.grad /= self._workers
                self._step()
                self._arrived = 0
                self._round = torch.futures.Future()
                answer.set_result(self.weights())
        return answer

    def _add(self, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self._model.parameters(), gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient

    def _step(self) -> None:
        self._optimizer.step()
        self._optimizer.zero_grad()


def push_one(server: rpc.RRef[Server], gradients: list[Tensor]) -> list[Tensor]:
    """Run on the server's process."""
    return server.local_value().apply(gradients)


@rpc.functions.async_execution
def push_round(
    server: rpc.RRef[Server], gradients: list[Tensor]
) -> torch.futures.Future[list[Tensor]]:
    """Run on the server's process; its answer comes when the future is done."""
    return server.local_value().join(gradients)


def contenders(workload: Workload, workers: int) -> list[Job]:
    """The two tutorials."""
    return [
        Job(name, [Part(play, (workload, push, workers))] * (1 + workers), 1, freezes=True)
        for name, push in ((SYNC, push_round), (ASYNC, push_one))
    ]


def play(stage: Stage, workload: Workload, push: object, workers: int) -> None:
    """Be the server (rank 0) or a worker."""
    # Torch's own, of what init_rpc does.
    warnings.filterwarnings("ignore", "You are using a Backend", UserWarning)
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    name = _SERVER if rank == 0 else f"worker{rank}"
    rpc.init_rpc(name, rank=rank, world_size=1 + workers)
    if rank == 0:
        stage.wait()
    else:
        _work(stage, workload, push, rank - 1, workers)
    # Torch's shutdown takes seconds, and complains of those that were quicker.
    os._exit(0)


def _work(stage: Stage, workload: Workload, push: object, rank: int, workers: int) -> None:
    server = rpc.remote(_SERVER, _the_server, (workload, workers))
    model = workload.model()
    parameters = list(model.parameters())
    gradients = workload.gradients(model, rank, workers)

    def step() -> None:
        gradients()
        sent = [parameter.grad for parameter in parameters]
        weights = rpc.rpc_sync(_SERVER, push, (server, sent))
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)

    stage.play(step)


_made: list[Server] = []
_making = threading.Lock()


def _the_server(workload: Workload, workers: int) -> Server:
    """Make the one server of this process for the first who asks."""
    with _making:
        if not _made:
            _made.append(Server(workload, workers))
        return _made[0]
