"""A few training steps of a tiny STMI, in one process or one of several."""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from stmi.clip.loading import load_clip
from stmi.config import (
    ChiConfig,
    FusionConfig,
    ImageSize,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SfmConfig,
    StrConfig,
)
from stmi.model import STMI
from stmi.model_input import ModelInput
from stmi.training import train_step
from stmi.training.batch_plan import rows_of_rank
from stmi.training.train_step import TrainStep

MODEL = ModelConfig(
    image=ImageSize(height=32, width=16),
    sfm=SfmConfig(perturbation=0.2, mask_threshold=0.5),
    str=StrConfig(tokens=2, heads=2),
    fusion=FusionConfig(dropout=0.1),
)
BATCH, IDENTITIES = 12, 6


def global_batch(step: int) -> tuple[ModelInput, torch.Tensor]:
    random = torch.Generator().manual_seed(step)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(BATCH, *shape, generator=random, dtype=torch.float64)

    labels = torch.arange(BATCH) // 2
    camera_id = torch.randint(0, 3, (BATCH,), generator=random)
    return ModelInput(draw(3, 3, 32, 16), draw(8).sigmoid(), draw(16), camera_id), labels


def build(
    clip_folder: Path,
    dtype: torch.dtype,
    compiled: bool = False,
    device: str = "cpu",
    autocast: bool = False,
    chi: ChiConfig = MODEL.chi,
    **memory: int,
) -> tuple[STMI, TrainStep]:
    config = MODEL.model_copy(update={"chi": chi})
    model = STMI(config, load_clip(clip_folder), IDENTITIES, cameras=3, seed=0).to(device, dtype).train()
    optim = OptimConfig(learning_rate=1e-3, gradient_clip=1.0, modulation_rate_factor=10)
    return model, TrainStep(model, LossConfig(), optim, autocast=autocast, compiled=compiled, **memory)


def train(
    clip_folder: Path,
    steps: int,
    rank: int = 0,
    world_size: int = 1,
    dtype: torch.dtype = torch.float64,
    restart_before: int | None = None,
    compiled: bool = False,
    **options: Any,
) -> tuple[list[float], STMI]:
    model, take_step = build(clip_folder, dtype, compiled, **options)
    rows, totals = rows_of_rank(BATCH, rank, world_size), []
    for step in range(steps):
        if step == restart_before:
            weights, state = model.state_dict(), take_step.optimizer.state_dict()
            model, take_step = build(clip_folder, dtype, **options)
            model.load_state_dict(weights)
            take_step.optimizer.load_state_dict(state)
        totals.append(take_own_rows(model, take_step, step, rows, dtype))
    return totals, model


def take_own_rows(
    model: STMI, take_step: TrainStep, step: int, rows: slice, dtype: torch.dtype = torch.float64
) -> float:
    """Take one step with a worker's rows; returns the loss."""
    device = model.image_tower.proj.device
    batch, labels = global_batch(step)
    own = ModelInput(
        batch.images[rows].to(device, dtype),
        batch.foreground[rows].to(device),
        batch.text[rows].to(device, dtype),
        batch.camera_id[rows].to(device),
    )
    draws = model.random_draws(0, 0, step, BATCH, rows)
    return take_step(own, draws, labels[rows].to(device), rate=1e-3)["total"].item()


def train_as_rank(rank: int, world_size: int, folder: str, steps: int, options: dict[str, Any]) -> None:
    with _process_group(rank, world_size, folder):
        totals, model = train(Path(folder) / "clip", steps, rank, world_size, **options)
        if rank == 0:
            torch.save({"totals": totals, "model": model.state_dict()}, f"{folder}/result-{world_size}.pt")


def train_on_gpu_as_rank(rank: int, world_size: int, folder: str, steps: int) -> None:
    torch.cuda.set_device(rank)
    with _process_group(rank, world_size, folder, "nccl"):
        totals, model = train(Path(folder) / "clip", steps, rank, world_size, device=f"cuda:{rank}")
        if rank == 0:
            torch.save({"totals": totals, "model": model.state_dict()}, f"{folder}/result-nccl.pt")


def train_with_a_slow_worker(rank: int, world_size: int, folder: str, steps: int, delay: float) -> None:
    """The second worker sleeps in each step; stores what each of them took on its own."""
    with _process_group(rank, world_size, folder):
        model, take_step = build(Path(folder) / "clip", torch.float64)
        run_model = take_step.global_loss.run_model

        def run_slowly(*given: Any) -> Any:
            time.sleep(delay if rank == 1 else 0.0)
            return run_model(*given)

        take_step.global_loss.run_model = run_slowly
        rows = rows_of_rank(BATCH, rank, world_size)
        for step in range(steps):
            take_own_rows(model, take_step, step, rows)
        taken: list[float] = [0.0] * world_size
        dist.all_gather_object(taken, take_step.global_loss.own_seconds)
        if rank == 0:
            torch.save(taken, f"{folder}/own_seconds.pt")


def train_with_and_without_restart(rank: int, world_size: int, folder: str, steps: int) -> None:
    """Float32, where another order of summation would show."""
    with _process_group(rank, world_size, folder):
        results = {}
        for name, restart in (("undisturbed", None), ("restarted", steps // 2)):
            _, model = train(Path(folder) / "clip", steps, rank, world_size, torch.float32, restart)
            results[name] = model.state_dict()
        if rank == 0:
            torch.save(results, f"{folder}/restarted.pt")


def record_exchanges(rank: int, world_size: int, folder: str) -> None:
    """The order of exchanges in a step, eager and compiled, and its loss."""
    # Buckets that hold a part of the tiny model, as those of 8 MiB do of a published one.
    train_step.BUCKET_MEBIBYTES = 0.005
    dist._DEFAULT_FIRST_BUCKET_BYTES = 1024
    torch.compile = functools.partial(torch.compile, backend="eager")
    with _process_group(rank, world_size, folder):
        found = {
            compiled: _exchanges(Path(folder) / "clip", rank, world_size, compiled)
            for compiled in (False, True)
        }
        if rank == 0:
            torch.save(found, f"{folder}/exchanges.pt")


def _exchanges(clip_folder: Path, rank: int, world_size: int, compiled: bool) -> tuple[list[str], float]:
    events: list[str] = []

    def exchange(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        events.append("exchange")
        return allreduce_hook(None, bucket)

    model, take_step = build(clip_folder, torch.float64, compiled)
    take_step.module.register_comm_hook(None, exchange)
    tower = model.image_tower
    for name, weight in (
        ("last layer", tower.blocks[-1].ln_1.weight),
        ("modulation", tower.modulation.alpha),
    ):
        weight.register_post_accumulate_grad_hook(lambda _, name=name: events.append(name))
    total = take_own_rows(model, take_step, 0, rows_of_rank(BATCH, rank, world_size))
    return events, total


def store_of(folder: Path | str) -> Path:
    """The file by which the processes of a group find each other."""
    return Path(folder) / "store"


@contextmanager
def _process_group(rank: int, world_size: int, folder: str, backend: str = "gloo") -> Iterator[None]:
    torch.set_num_threads(1)
    store = dist.FileStore(str(store_of(folder)), world_size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    yield
    dist.destroy_process_group()
