"""Learning-rate schedules: a cosine after a linear warm-up, and the one of the released code."""

import math
from functools import cache

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from stmi.config import OptimConfig


def learning_rate(config: OptimConfig, epoch: float, epochs: int) -> float:
    """The rate at a point of the run.

    The cosine schedule warms up from zero along a line, then falls to the final rate. The released one
    changes by epoch; see `released_rates`.

    Args:
        config: Rates and warm-up.
        epoch: Finished epochs plus the finished fraction of the current one.
        epochs: Epochs of the run.
    """
    if config.schedule == "released":
        rates = released_rates(config.learning_rate, config.final_learning_rate, epochs)
        return rates[min(int(epoch), epochs - 1)]
    if epoch < config.warmup_epochs:
        return config.learning_rate * epoch / config.warmup_epochs
    progress = (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9)
    falling = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * falling


@cache
def released_rates(rate: float, final_rate: float, epochs: int) -> tuple[float, ...]:
    """The released code's rate in each epoch.

    A cosine by epoch whose ten warm-up epochs start at ten times the rate and descend, with seeded noise:
    timm's scheduler with the arguments that code gives it.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=epochs,
        lr_min=final_rate,
        warmup_t=10,
        warmup_lr_init=10 * rate,
        cycle_limit=1,
        noise_range_t=(0, epochs),
        noise_pct=0.67,
        noise_std=1.0,
        noise_seed=42,
    )
    rates = []
    for epoch in range(1, epochs + 1):
        scheduler.step(epoch)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return tuple(rates)
