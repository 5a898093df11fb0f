"""Packages that psrpc uses if they are there, and imports only when they are asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

import torch

from psrpc.errors import PsrpcError
from psrpc.importing import cause


def torchvision(kind: type[PsrpcError], *, wanted_by: str, instead: str) -> ModuleType:
    """Import and return torchvision.

    `wanted_by` ("dataset 'mnist'") and `instead` ("use --dataset digits") end up
    in the error: a `kind` of one line, raised both when torchvision is missing
    and when it was built for another torch. A failed import leaves nothing
    behind that changes the next one: every call fails with the same text.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name == "torchvision":
            remedy = f"install it (pip install torchvision), or {instead}"
            text = f"{wanted_by} needs torchvision, which is not installed: {remedy}"
            raise kind(text) from error
        raise kind(_unusable(error, wanted_by, instead)) from error
    except Exception as error:
        # A torchvision built for another torch raises whatever it trips over first:
        # RuntimeError (operator torchvision::nms does not exist), OSError, AttributeError.
        raise kind(_unusable(error, wanted_by, instead)) from error


def _unusable(error: Exception, wanted_by: str, instead: str) -> str:
    return (
        f"{wanted_by} needs torchvision, but torchvision {_version('torchvision')} does not work "
        f"with torch {torch.__version__} ({cause(error)}): install the torchvision that belongs "
        f"to this torch, or {instead}"
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(unknown version)"
