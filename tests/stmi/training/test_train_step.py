import functools

import pytest
import torch
from torch import multiprocessing

from stmi.config import ChiConfig, LossConfig, OptimConfig
from stmi.incidence import FACTS
from stmi.model import trained_features
from stmi.training import train_step
from stmi.training.losses import losses_without_gradient
from tests import tiny_clip
from tests.stmi.training import training
from tests.tolerances import EXACT_FLOAT64

STEPS = 20
# Forked processes need not import torch and its compiler again.
PRELOADED = ["tests.stmi.training.training", "torch._dynamo"]
multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)


def in_processes(function, count, folder, *arguments):
    """Call a function for each rank of a process group, each in its own process."""
    # The addresses of an earlier group: a process that reads them waits for what has ended.
    training.store_of(folder).unlink(missing_ok=True)
    arguments = (count, str(folder), *arguments)
    multiprocessing.start_processes(function, arguments, nprocs=count, start_method="forkserver")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    tiny_clip.write(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return training.train(folder / "clip", STEPS)


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_workers_trains_the_same_model(folder, alone, world_size):
    in_processes(training.train_as_rank, world_size, folder, STEPS, {})
    spread = torch.load(folder / f"result-{world_size}.pt", weights_only=True)
    expect_same(spread["totals"], spread["model"], alone)


def test_micro_batches_and_checkpointed_activations_train_the_same_model_on_any_number_of_workers(
    folder, alone
):
    for memory in ({"micro_batches": 2}, {"micro_batches": 4}, {"checkpoint_activations": True}):
        totals, model = training.train(folder / "clip", STEPS, **memory)
        expect_same(totals, model.state_dict(), alone)
    both = {"micro_batches": 3, "checkpoint_activations": True}
    in_processes(training.train_as_rank, 2, folder, STEPS, both)
    spread = torch.load(folder / "result-2.pt", weights_only=True)
    expect_same(spread["totals"], spread["model"], alone)


def test_tau_that_follows_the_batches_is_that_of_the_global_batch_and_is_resumed(folder):
    follows = {"chi": ChiConfig(incidence="density", density=0.5)}
    alone = training.train(folder / "clip", 6, **follows)
    assert 0 < alone[1].incidence.threshold.item() < 0.5
    totals, model = training.train(folder / "clip", 6, micro_batches=3, **follows)
    expect_same(totals, model.state_dict(), alone)
    in_processes(training.train_as_rank, 2, folder, 6, follows)
    spread = torch.load(folder / "result-2.pt", weights_only=True)
    expect_same(spread["totals"], spread["model"], alone)
    totals, model = training.train(folder / "clip", 6, restart_before=3, **follows)
    assert totals == alone[0]
    again = model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in alone[1].state_dict().items())


def test_checkpointed_activations_change_no_bit_of_the_fast_forms(folder):
    _, model = training.train(folder / "clip", 2, dtype=torch.float32)
    _, again = training.train(folder / "clip", 2, dtype=torch.float32, checkpoint_activations=True)
    weights = again.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def expect_same(totals, weights, alone):
    assert totals == pytest.approx(alone[0], abs=EXACT_FLOAT64)
    for name, value in alone[1].state_dict().items():
        assert torch.allclose(weights[name].double(), value.double(), atol=EXACT_FLOAT64), name


def test_time_of_a_worker_is_its_own_and_not_what_it_waits_for_a_slow_one(folder):
    steps, delay = 4, 0.5
    in_processes(training.train_with_a_slow_worker, 2, folder, steps, delay)
    quick, slow = torch.load(folder / "own_seconds.pt", weights_only=True)
    assert slow >= steps * delay
    assert slow - quick > steps * delay / 2


def test_restart_on_three_workers_ends_with_bit_identical_weights(folder):
    in_processes(training.train_with_and_without_restart, 3, folder, 6)
    results = torch.load(folder / "restarted.pt", weights_only=True)
    for name, value in results["undisturbed"].items():
        assert torch.equal(results["restarted"][name], value), name


def test_gradients_are_exchanged_while_others_are_computed(folder, alone):
    in_processes(training.record_exchanges, 2, folder)
    found = torch.load(folder / "exchanges.pt", weights_only=True)
    for compiled, (events, total) in found.items():
        assert total == pytest.approx(alone[0][0], abs=EXACT_FLOAT64), compiled
        # While the first layer is computed; the gradients of alpha and beta are complete only after it.
        assert "exchange" in events[events.index("last layer") : events.index("modulation")], (
            compiled,
            events,
        )


def test_losses_that_train_nothing_are_those_without_a_gradient(folder):
    model, take_step = training.build(folder / "clip", torch.float64)
    batch, labels = training.global_batch(0)
    draws = model.random_draws(0, 0, 0, training.BATCH, slice(0, training.BATCH))
    parts = take_step.global_loss(batch, draws, labels)
    found = {name for name, value in parts.items() if "/" in name and not value.requires_grad}
    idle = losses_without_gradient(LossConfig(), trained_features(model.config), trains_text=False)
    assert idle == ("triplet/T",)
    assert found == {*idle, *(f"hyperedges/{name}" for name in FACTS)}
    unweighted = losses_without_gradient(LossConfig(triplet_weight=0), ["U", "T"], trains_text=True)
    assert unweighted == ("triplet/U", "triplet/T")


def test_training_twice_gives_identical_weights(folder, alone):
    totals, model = training.train(folder / "clip", STEPS)
    assert totals == alone[0]
    first = alone[1].state_dict()
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())


def test_compiled_steps_train_the_same_weights(folder, monkeypatch):
    # The compiler's own passes, without the minute that machine code takes.
    whole = functools.partial(torch.compile, backend="aot_eager_decomp_partition")
    monkeypatch.setattr(torch, "compile", whole)
    totals, model = training.train(folder / "clip", 3, compiled=True)
    expected, eager = training.train(folder / "clip", 3)
    assert totals == pytest.approx(expected, abs=EXACT_FLOAT64)
    for name, value in model.state_dict().items():
        assert torch.allclose(value, eager.state_dict()[name], atol=EXACT_FLOAT64), name


def test_loss_falls_on_a_batch_seen_again(folder):
    totals, _ = training.train(folder / "clip", 1)
    model = training.train(folder / "clip", STEPS)[1]
    batch, labels = training.global_batch(0)
    again = train_step.GlobalBatchLoss(model, training.LossConfig(), autocast=False)
    draws = model.random_draws(0, 0, 0, training.BATCH, slice(0, training.BATCH))
    assert again(batch, draws, labels)["total"].item() < totals[0]


def test_modulation_has_its_own_rate_and_decay(folder):
    _, model = training.train(folder / "clip", 0)
    optimizer = train_step.build_optimizer(
        model, OptimConfig(modulation_rate_factor=10, modulation_weight_decay=0)
    )
    assert optimizer.defaults["fused"]
    others, strengths = optimizer.param_groups
    assert [p.shape for p in strengths["params"]] == [(2, 1, 1, 1), (2, 1, 1, 1)]
    assert (strengths["weight_decay"], strengths["rate_factor"]) == (0.0, 10)
    trained = sum(p.requires_grad for p in model.parameters())
    assert others["weight_decay"] == 1e-4
    assert len(others["params"]) + len(strengths["params"]) == trained
