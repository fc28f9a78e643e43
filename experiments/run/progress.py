"""How far a run is: its epochs and steps, and the losses of the epoch that was begun."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class Progress:
    """Progress of a run.

    Attributes:
        epoch: Epochs done.
        step: Optimisation steps done, in all epochs.
        in_epoch: Those of the epoch that was begun.
        sums: The sum of each loss over these, without those that were skipped; scalars.
        totals: The total loss of each of these, scalars.
        finite: How many of these are known to be finite, or were skipped.
        skipped: Those that were skipped, since their loss or gradient was not finite; counted from 0.
        rate: Learning rate of the last of these.
    """

    epoch: int = 0
    step: int = 0
    in_epoch: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    totals: list[Tensor] = field(default_factory=list)
    finite: int = 0
    skipped: list[int] = field(default_factory=list)
    rate: float = 0.0

    def position(self) -> dict[str, int]:
        """Epochs and steps done, as the journal has them."""
        return {"epoch": self.epoch, "step": self.step}

    def count_step(self, losses: dict[str, Tensor], rate: float, *, is_skipped: bool = False) -> None:
        """Count a step of the epoch.

        Args:
            losses: Before the step, detached scalars.
            rate: Its learning rate.
            is_skipped: Whether the weights were left as they were.
        """
        self.step += 1
        self.in_epoch += 1
        self.rate = rate
        self.totals.append(losses["total"])
        if is_skipped:
            self.skipped.append(self.in_epoch - 1)
            return
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value

    def means(self) -> dict[str, float]:
        """The mean of each loss over the epoch so far, without the steps that were skipped."""
        count = self.in_epoch - len(self.skipped)
        return {name: (total / count).item() for name, total in self.sums.items()}

    def find_not_finite(self, running: int = 0) -> int | None:
        """The first step of the epoch, from 0, whose loss is not finite and that was not skipped, or None.

        Args:
            running: How many of the last steps are not looked at: a GPU may still compute them.
        """
        for index in range(self.finite, len(self.totals) - running):
            if index not in self.skipped and not math.isfinite(self.totals[index]):
                return index
            self.finite = index + 1
        return None

    def step_losses(self) -> list[float | None]:
        """The total loss of each step of the epoch so far; None where it was skipped.

        Each is as short as float32 can be written exactly.
        """
        totals = torch.stack(self.totals) if self.totals else torch.empty(0)
        values = [float(str(value)) for value in totals.float().cpu().numpy()]
        return [None if index in self.skipped else value for index, value in enumerate(values)]

    def end_epoch(self) -> None:
        """Count the epoch as done."""
        self.epoch += 1
        self.in_epoch = self.finite = 0
        self.sums, self.totals, self.skipped = {}, [], []

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return dict(vars(self))

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Progress":
        """The progress that a checkpoint holds, also one of an older version, without a part of an epoch."""
        return cls(**{field.name: state[field.name] for field in fields(cls) if field.name in state})
