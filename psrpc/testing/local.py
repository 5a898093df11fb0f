"""A whole job in one process: real servers and workers, the in-process plane, a thread each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from psrpc.coordinator import Coordinator
from psrpc.crew import stats_of
from psrpc.errors import JobFailedError, JobOverError, encode
from psrpc.job import Job
from psrpc.planes.base import Link, Service
from psrpc.planes.loopback import LoopbackLink
from psrpc.report import Report, summarize
from psrpc.server import ParameterServer
from psrpc.store.blueprint import GroupsFactory, OptimizerFactory, draw
from psrpc.store.shard import ShardStore
from psrpc.watcher import Watcher
from psrpc.worker import Worker


@dataclass
class LocalJob:
    """Runs `train` as psrpc.run would, without processes. `run` blocks until all are done."""

    job: Job
    model: Callable[[], nn.Module]
    optimizer: OptimizerFactory
    param_groups: GroupsFactory | None = None
    workers: list[Worker] = field(default_factory=list)
    services: list[Service] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    report: Report | None = None

    def start(self) -> None:
        """Make servers and workers, each with a model of its own from the job's seed."""
        for index in range(self.job.servers):
            model = self._model()
            blueprint = draw(model, self.optimizer, self.param_groups)
            layout = blueprint.layouts(self.job.servers)[index]
            store = ShardStore(blueprint, layout, model, self.job.reduction)
            server = ParameterServer(self.job, index, blueprint, store)
            if index == 0:
                self.services.append(Coordinator(self.job, server, blueprint, model))
                continue
            self.services.append(server)
            watcher = Watcher(LoopbackLink(self.services[0]), server)
            watcher.start()
        for rank in range(self.job.workers):
            model = self._model()
            blueprint = draw(model, self.optimizer, self.param_groups)
            links: list[Link] = [
                LoopbackLink(service, service.server if isinstance(service, Coordinator) else None)
                for service in self.services
            ]
            self.workers.append(Worker(self.job, rank, model, blueprint, links))

    def run(self, train: Callable[[Worker], Any], timeout_s: float = 60.0) -> Report:
        """Train, and return the report. Raises what a worker's `train` raised first."""
        if not self.workers:
            self.start()
        threads = [
            threading.Thread(target=self._work, args=(worker, train), name=f"worker{worker.rank}")
            for worker in self.workers
        ]
        for thread in threads:
            thread.daemon = True
            thread.start()
        for thread in threads:
            thread.join(timeout_s)
            if thread.is_alive():
                raise TimeoutError(f"{thread.name} is not done after {timeout_s} s")
        if self.errors:
            raise next(
                (e for e in self.errors if not isinstance(e, JobFailedError)), self.errors[0]
            )
        links = [LoopbackLink(service) for service in self.services]
        self.report = summarize(stats_of(links, 0))
        return self.report

    def _model(self) -> nn.Module:
        torch.manual_seed(self.job.seed)
        return self.model()

    def _work(self, worker: Worker, train: Callable[[Worker], Any]) -> None:
        try:
            worker.start()
            with worker.crew.unless_leaving():
                train(worker)
            worker.leave(early=worker.leaving)
            worker.crew.bye()
        except JobOverError:
            return  # it was taken for dead, and the others have done its work
        except BaseException as error:
            self.errors.append(error)
            worker.crew.fail(encode(error))
