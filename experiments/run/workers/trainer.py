"""Ray Train's trainer, which leaves Ctrl-C to this project."""

from typing import Any

import ray
from ray.train.torch import TorchTrainer

ABORT_SECONDS = 20.0
"""How long the end of the workers is waited for."""


class Trainer(TorchTrainer):
    """Ends its workers when it is told to; Ray Train's own answer to Ctrl-C is to end as if all were well."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """End the workers, and their controller, which writes the journal; without a word where they have."""
        if self._controller is None:
            return
        try:
            ray.get(self._controller.abort.remote(), timeout=ABORT_SECONDS)
        except ray.exceptions.RayError:
            # The controller ends before it can answer; one that hangs is killed with this process.
            return
