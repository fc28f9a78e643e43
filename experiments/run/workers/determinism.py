"""PyTorch's deterministic algorithms, and the operations that have none."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_WARNING = re.compile(r"(\S+) does not have a deterministic implementation")


@contextmanager
def deterministic_algorithms() -> Iterator[set[str]]:
    """Take deterministic algorithms for every operation that has one.

    Yields:
        Names of operations that ran inside and have none. They run all the same.
    """
    # cuBLAS reads it with the first product of a process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    names: set[str] = set()
    show = warnings.showwarning

    def collect(message: Warning | str, *others: Any, **named: Any) -> None:
        if found := _WARNING.search(str(message)):
            names.add(found[1])
        else:
            show(message, *others, **named)

    with warnings.catch_warnings():
        # Every time: by default a warning is shown once for each line of code.
        warnings.filterwarnings("always", message=".* does not have a deterministic implementation")
        warnings.showwarning = collect
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield names
        finally:
            torch.use_deterministic_algorithms(False)
