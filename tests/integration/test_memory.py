"""A step takes no memory that stays."""

from __future__ import annotations

from tests.processes import Bench

STEPS = """
    import ctypes, torch
    from psrpc.modes import Reduction
    from psrpc.store.blueprint import draw
    from psrpc.store.shard import Contribution, ShardStore

    class Mallinfo2(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )]

    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2

    def heap():
        found = mallinfo2()
        return found.arena + found.hblkhd

    begun = heap()
    model = torch.nn.Linear(8192, 2048, bias=False)
    blueprint = draw(model, torch.optim.Adam)
    store = ShardStore(blueprint, blueprint.layouts(1)[0], model, Reduction.MEAN)
    gradients = [torch.ones(8192 * 2048) for _ in range(2)]

    def step():
        store.step([Contribution([gradient], 1) for gradient in gradients])
        return heap()

    step()  # the state is made
    # Beyond the model and the server's weights, two gradients, and Adam's two.
    print(max(step() for _ in range(4)) - begun - 6 * model.weight.nbytes, model.weight.nbytes)
"""


def test_a_large_step_in_stretches_leaves_the_heap_as_it_was(bench: Bench) -> None:
    bench.write("steps.py", STEPS)
    ended = bench.run("steps.py", fresh=True)
    assert ended.code == 0, ended.err
    beyond, model = map(int, ended.out.split())
    assert beyond < model // 4, (beyond, model)
