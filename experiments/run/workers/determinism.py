"""PyTorch's deterministic algorithms, and the operations that have none."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_WARNING = r"(.+?) (?:does not have a deterministic implementation|defaults to a non-deterministic algorithm)"


@contextmanager
def deterministic_algorithms() -> Iterator[set[str]]:
    """Take deterministic algorithms for every operation that has one.

    Yields:
        Names of operations that ran inside and have none. They run all the same. Attention on a GPU is
        computed without its fused kernels: where operations without a deterministic algorithm are let
        through, PyTorch takes the algorithms of these kernels that are not deterministic.
    """
    # cuBLAS reads it with the first product of a process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    names: set[str] = set()
    show = warnings.showwarning

    def collect(message: Warning | str, *others: Any, **named: Any) -> None:
        if found := re.match(_WARNING, str(message)):
            names.add(found[1])
        else:
            show(message, *others, **named)

    attention = sdpa_kernel(SDPBackend.MATH) if torch.cuda.is_available() else nullcontext()
    with attention, warnings.catch_warnings():
        # Every time: by default a warning is shown once for each line of code.
        warnings.filterwarnings("always", message=_WARNING)
        warnings.showwarning = collect
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield names
        finally:
            torch.use_deterministic_algorithms(False)
