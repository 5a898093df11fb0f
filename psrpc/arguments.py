"""What is given to `psrpc.run`: whether it is of the kind that it must be."""

from __future__ import annotations

from psrpc.job import Checkpointing, Elastic, Hosts


def wrong_arguments(
    train: object,
    model: object,
    seed: object,
    checkpointing: object,
    elastic: object,
    hosts: object,
) -> list[str]:
    """A sentence for each argument of `run` that is of another kind than it must be."""
    model_wanted = "a torch.nn.Module, or a class or function that makes one"
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    kinds = (
        ("train", callable(train), "a function, which is called with a Worker", train),
        ("model", callable(model), model_wanted, model),
        ("seed", whole, "a whole number", seed),
        (
            "checkpointing",
            checkpointing is None or isinstance(checkpointing, Checkpointing),
            "a psrpc.Checkpointing",
            checkpointing,
        ),
        (
            "elastic",
            elastic is None or isinstance(elastic, Elastic),
            "a psrpc.Elastic",
            elastic,
        ),
        ("hosts", hosts is None or isinstance(hosts, Hosts), "a psrpc.Hosts", hosts),
    )
    return [
        f"{name} must be {what}, not {given!r}" for name, fits, what, given in kinds if not fits
    ]
