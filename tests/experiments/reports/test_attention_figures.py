import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn import functional

from data_catalog.views.view_reader import open_view
from experiments.evaluating import evaluation_target
from experiments.reports.attention_figures import (
    ClassAttention,
    class_attention,
    class_rows,
    learned_strengths,
    plot_attention_maps,
    spread_queries,
)
from stmi.feature_modulation import ModulatedAttention
from tests.experiments import small_run


@pytest.fixture
def layer():
    torch.manual_seed(0)
    attention = ModulatedAttention(16, 2)
    tokens = torch.randn(3, 9, 16)
    foreground = torch.rand(3, 9) < 0.5
    foreground[:, 0] = True
    return attention, tokens, foreground


@pytest.fixture
def run(ray_session, clip, workspace):
    return small_run.alone(clip, workspace, "model.sfm.sharing=early_half")


def test_rows_equal_the_attention_of_the_layer(layer):
    attention, tokens, foreground = layer
    strength = (torch.full((2, 1, 1), 0.3), torch.tensor([0.2, 0.6]).view(2, 1, 1))
    _, _, value = functional.linear(tokens, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    value = value.unflatten(2, (2, 8)).transpose(1, 2)
    for given in ((foreground, strength), (None, None)):
        _, after = class_rows(attention, tokens, *given)
        mixed = (after[:, :, None] @ value).transpose(1, 2).flatten(2)
        expected = attention(tokens, *given)[:, :1]
        assert torch.allclose(attention.out_proj(mixed), expected, atol=1e-5)


def test_before_is_the_softmax_of_the_plain_logits(layer):
    attention, tokens, foreground = layer
    projected = tokens.double() @ attention.in_proj_weight.double().T
    before, after = class_rows(attention, tokens, foreground, (torch.tensor(0.4), torch.tensor(0.4)))
    for head in range(2):
        query, key = (projected[1, :, start + 8 * head : start + 8 * head + 8] for start in (0, 16))
        logits = (query[0] @ key.T) / 8**0.5
        assert before[1, head].tolist() == pytest.approx(
            (logits.exp() / logits.exp().sum()).tolist(), abs=1e-5
        )
    assert not torch.allclose(before, after, atol=1e-3)


def test_zero_strength_changes_nothing(layer):
    attention, tokens, foreground = layer
    zero = torch.zeros(1, 1, 1)
    before, after = class_rows(attention, tokens, foreground, (zero, zero))
    assert torch.allclose(before, after)


def test_share_of_uniform_attention_on_the_foreground_is_its_area():
    foreground = np.array([[True, False, False, False], [True, True, True, False]])
    uniform = np.full((2, 2, 3, 4), 0.2)
    found = ClassAttention(uniform, uniform, foreground)
    assert found.foreground_share(uniform) == pytest.approx(
        np.broadcast_to([[0.25] * 3, [0.75] * 3], (2, 2, 3))
    )


def test_layers_without_modulation_attend_as_before(run):
    trained = evaluation_target.load_run(run.path)
    view = open_view(trained.table)
    rows = spread_queries(view, 5)
    assert view.is_query[rows].all()
    found = class_attention(trained, view, rows)
    patches = trained.model.grid[0] * trained.model.grid[1]
    assert found.before.shape == found.after.shape == (2, 5, 3, patches)
    assert np.array_equal(found.before[1], found.after[1])
    mixed = found.foreground.any(axis=1) & ~found.foreground.all(axis=1)
    assert (found.foreground_share(found.after)[0] > found.foreground_share(found.before)[0])[mixed].all()


def test_map_shows_every_image_mask_and_layer(run):
    trained = evaluation_target.load_run(run.path)
    view = open_view(trained.table)
    axes = np.array(plot_attention_maps(trained, view, 0).axes).reshape(3, 6)
    assert [one.get_title() for one in axes[0]] == ["RGB", "NIR", "TIR", "mask", "token\nmask", ""]
    shown = np.asarray(axes[0, 1].images[0].get_array())
    assert np.array_equal(shown, view.batch([0]).pixels[0, 1].transpose(1, 2, 0))
    before, after = (float(one.get_title().split("\n")[-1].rstrip("%")) for one in axes[1, :2])
    assert after >= before
    assert [one.get_ylabel() for one in axes[1:, 0]] == ["layer 1", "layer 2"]


def test_learned_strengths_are_given_for_modulated_layers_only(run):
    alpha, beta = learned_strengths(run)
    weights = load_file(f"{run.result.checkpoint}/model.safetensors")
    assert alpha[0] == pytest.approx(weights["image_tower.modulation.alpha"].ravel())
    assert beta[0] == pytest.approx(weights["image_tower.modulation.beta"].ravel())
    assert np.isnan(alpha[1]).all()
    assert np.isnan(beta[1]).all()
