"""STMI: segmentation-guided token modulation with cross-modal hypergraph interaction.

The method, in PyTorch only: model, losses, batch plan, augmentation and retrieval metrics. Ray, MLflow and
the files of data sets belong to `data_catalog` and `experiments`. Begin with `stmi/README.md`.

`stmi.load` gives a trained run, which embeds images and ranks a gallery.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stmi.errors import TrainedRunError
    from stmi.retrieval.metrics import RetrievalError
    from stmi.retrieval.ranking import Embeddings, Ranking
    from stmi.trained_run import TrainedRun, load

_MODULES = {
    "Embeddings": "stmi.retrieval.ranking",
    "Ranking": "stmi.retrieval.ranking",
    "RetrievalError": "stmi.retrieval.metrics",
    "TrainedRun": "stmi.trained_run",
    "TrainedRunError": "stmi.errors",
    "load": "stmi.trained_run",
}

__all__ = ["Embeddings", "Ranking", "RetrievalError", "TrainedRun", "TrainedRunError", "load"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: torch takes seconds, and `stmi.config` does not need it."""
    if name not in _MODULES:
        raise AttributeError(f"module 'stmi' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
