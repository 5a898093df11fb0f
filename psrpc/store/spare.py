"""torch.optim without torch.compile's machinery, which takes seconds and 150 MB to import."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import optim

_MARK = "__dynamo_disable"


def spare_dynamo() -> None:
    """Let optimizers be made without an import of `torch._dynamo`.

    torch.optim hides one method from the compiler, and imports the compiler to do so when the
    method is first called. It looks first whether that was done before: here it is told so.
    Nothing is changed where the compiler is there already, or where this torch does otherwise.
    """
    hidden = getattr(optim.Optimizer.add_param_group, "__wrapped__", None)
    if "torch._dynamo" not in sys.modules and hidden is not None and not hasattr(hidden, _MARK):
        setattr(hidden, _MARK, hidden)


def plain_step(kind: type[optim.Optimizer]) -> Callable[[optim.Optimizer], Any]:
    """The step of a class without what torch.optim wraps around it; call it without gradients."""
    step: Callable[[optim.Optimizer], Any] = inspect.unwrap(kind.step)
    return step
