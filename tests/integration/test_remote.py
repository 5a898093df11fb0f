"""Remote references of torch RPC to actors, in two ranks of a group that the user made."""

from __future__ import annotations

from collections.abc import Sequence

from tests.processes import Bench, Finished

RANKS = """
import os, sys, warnings
import torch
import torch.distributed.rpc as rpc
import psrpc

warnings.filterwarnings("ignore", "You are using a Backend")  # of torch itself

class Counter:
    def __init__(self, value=0):
        self.value = value

    def add(self, amount=1):
        self.value += amount
        return self.value

    def pid(self):
        return os.getpid()

    def double(self, tensor):
        return tensor * 2

    def fail(self):
        raise ValueError(f"of \\\\x {self.value}")

    def unknown(self):
        raise psrpc.errors.ModelError("of psrpc")

def make(name=None, **options):
    kind = psrpc.actor(Counter).options(name=name, **options)
    return psrpc.rref(kind.remote(10))


def use(reference):
    assert reference.owner().name == "rank0"
    assert reference.rpc_sync().add(5) == 15
    assert reference.rpc_async().add(amount=5).wait() == 20
    assert reference.remote().add(5).to_here() == 25
    assert torch.equal(reference.rpc_sync().double(torch.ones(3)), torch.full((3,), 2.0))
    return reference.rpc_sync().pid()

def errors(reference):
    for call in [
        lambda: reference.rpc_sync().fail(),
        lambda: reference.rpc_async().fail().wait(),
        lambda: reference.remote().fail().to_here(),
    ]:
        try:
            call()
        except ValueError as error:
            assert "of \\\\x 25" in str(error) and "in fail" in str(error), error
        else:
            raise AssertionError("no error")
    for name, said in [("unknown", "ModelError: of psrpc"), ("none", "has no method 'none'")]:
        try:
            getattr(reference.rpc_sync(), name)()
        except RuntimeError as error:
            assert said in str(error), error
        else:
            raise AssertionError("no error")
BODY
rank = int(os.environ["RANK"])
options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=2, rpc_timeout=60, _transports=["uv"])
rpc.init_rpc(f"rank{rank}", rank=rank, world_size=2, rpc_backend_options=options)
try:
    if rank == 1:
        main()
finally:
    rpc.shutdown()
print("done")
"""


def ranks(bench: Bench, body: str) -> Sequence[Finished]:
    bench.write("ranks.py", RANKS.replace("BODY", body))
    ended = bench.ranks("ranks.py", count=2).finish()
    assert [(each.code, each.out) for each in ended] == [(0, "done\n")] * 2, ended
    return ended


def test_peers_call_actors_wherever_they_live(bench: Bench) -> None:
    ranks(
        bench,
        """
def main():
    here = rpc.rpc_sync("rank0", os.getpid)
    shared, own = [rpc.rpc_sync("rank0", make, kwargs={"own_process": own}) for own in (0, 1)]
    assert len({use(shared), use(own), here, os.getpid()}) == 4
    errors(shared)
    many = [shared.rpc_async().add() for _ in range(100)]  # by far more than RPC threads
    assert sorted(each.wait() for each in many) == list(range(26, 126))
""",
    )


def test_a_reference_gives_the_handle_and_keeps_the_actor(bench: Bench) -> None:
    ranks(
        bench,
        """
def main():
    named = rpc.rpc_sync("rank0", make, args=("tally",))
    handle = named.to_here()  # joins the cluster of rank 0
    assert handle.add.remote(1).result(60) == 11
    assert psrpc.get_actor("tally").add.remote(1).result(60) == named.rpc_sync().add(0) == 12
    nested = psrpc.rref(handle)
    assert nested.owner().name == "rank1" and rpc.rpc_sync("rank0", use_there, args=(nested,)) == 13
    kept = rpc.rpc_sync("rank0", make)
    assert kept.rpc_sync().add(0) == 10 and count() == 2
    del kept
    while count() == 2:
        pass  # the actor goes with its last reference

def use_there(reference):
    return reference.rpc_sync().add(1)

def count():
    actors = psrpc.actors.current.client.status()["actors"]
    return sum(each["title"] == "Counter" for each in actors)
""",
    )


def test_a_peer_whose_own_cluster_has_ended_joins_the_actors(bench: Bench) -> None:
    ranks(
        bench,
        """
def main():
    own = psrpc.init(num_cpus=1)
    own._node.kill()  # its cluster ends with it
    while not psrpc.actors.current.client.closed:
        pass
    other = rpc.rpc_sync("rank0", make)
    assert other.to_here().add.remote(1).result(60) == 11
""",
    )


def test_a_peer_of_another_cluster_is_told_so(bench: Bench) -> None:
    ranks(
        bench,
        """
def main():
    psrpc.init(num_cpus=1)
    other = rpc.rpc_sync("rank0", make)
    assert other.rpc_sync().add(0) == 10
    try:
        other.to_here()
    except Exception as error:
        assert "psrpc.shutdown() first" in str(error), error
    else:
        raise AssertionError("no error")
""",
    )


def test_without_rpc_it_is_refused(bench: Bench) -> None:
    bench.write(
        "alone.py",
        """
import psrpc

with psrpc.init(num_cpus=1, num_gpus=0):
    handle = psrpc.actor(dict).remote()
    try:
        psrpc.rref(handle)
    except psrpc.errors.UsageError as error:
        print(error)
""",
    )
    # In a process of its own: another test's agent may run in this one.
    ended = bench.run("alone.py")
    assert ended.code == 0, ended
    assert ended.out.startswith("torch RPC is not initialised in this process: call ")
