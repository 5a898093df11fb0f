"""Fixtures for every shelf."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from psrpc import optional
from psrpc.errors import ModelError
from tests.processes import SECRET_FILE
from tests.processes import bench as bench
from tests.processes import forks as forks

# MKL's results depend on the alignment of memory on some processors, unless it is told that
# they must not; tests compare bit by bit. It looks when it is first used, here and in children.
os.environ.setdefault("MKL_CBWR", "AUTO")

# Not the user's own.
os.environ["PSRPC_SECRET_FILE"] = str(SECRET_FILE)

DATA_VARIABLE = "PSRPC_TEST_DATA"


def candidate_roots() -> list[Path]:
    """Folders that may hold `MNIST`: the one named by the environment, or each one further up."""
    if named := os.environ.get(DATA_VARIABLE):
        return [Path(named)]
    return [folder / "shared" / "data" for folder in Path(__file__).resolve().parents]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, for the sake of processes that share the tests."""
    items.sort(key=lambda item: item.get_closest_marker("slurmlab") is None)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder that contains `MNIST/raw`, laid out as torchvision does."""
    for root in candidate_roots():
        if (root / "MNIST" / "raw").is_dir():
            return root
    pytest.skip(f"no MNIST here: set {DATA_VARIABLE} to the folder that contains MNIST/raw")


@pytest.fixture
def vision() -> ModuleType:
    """torchvision; skips, with what psrpc says of it, where it does not work with this torch."""
    try:
        return optional.torchvision(ModelError, wanted_by="this test", instead="skip it")
    except ModelError as error:
        pytest.skip(str(error))
