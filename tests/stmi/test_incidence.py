import pytest
import torch
from torch.nn import functional

from stmi.incidence import (
    cosine_incidence,
    cosine_similarities,
    density_threshold,
    hyperedge_facts,
    nearest_incidence,
)


def nodes_of(*, batch=2, count=9, width=4, seed=0):
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(seed))


def test_highest_threshold_leaves_every_node_alone_in_its_hyperedge():
    assert torch.equal(cosine_incidence(nodes_of(), 1.0), torch.eye(9, dtype=torch.bool).expand(2, -1, -1))


def test_lowest_threshold_connects_everything():
    assert cosine_incidence(nodes_of(), -1.0).all()


@pytest.mark.parametrize("neighbours", [0, 1, 3, 8, 20])
def test_hyperedge_of_the_nearest_nodes_is_its_centre_and_those_a_loop_finds(neighbours):
    nodes = nodes_of()
    incidence = nearest_incidence(nodes, neighbours)
    for sample, found in zip(nodes, incidence, strict=True):
        for centre in range(9):
            similarity = functional.cosine_similarity(sample, sample[centre], dim=-1).tolist()
            others = sorted((n for n in range(9) if n != centre), key=lambda n: -similarity[n])
            members = {centre, *others[:neighbours]}
            assert set(found[:, centre].nonzero().flatten().tolist()) == members


def test_of_equally_similar_nodes_the_first_are_nearest():
    incidence = nearest_incidence(torch.ones(1, 5, 3), 2)
    assert incidence[0, :, 0].tolist() == [True, True, True, False, False]
    assert incidence[0, :, 4].tolist() == [True, True, False, False, True]


@pytest.mark.parametrize("density", [0.12, 0.3, 0.5, 0.9, 1.0])
def test_threshold_of_a_density_gives_that_share_of_incidences(density):
    nodes = nodes_of(batch=40, count=15, width=6)
    threshold = density_threshold(cosine_similarities(nodes), density)
    assert cosine_incidence(nodes, threshold).float().mean().item() == pytest.approx(density, abs=2e-3)


def test_density_of_nodes_that_are_all_alone_is_the_least():
    nodes = nodes_of(batch=40, count=15, width=6)
    threshold = density_threshold(cosine_similarities(nodes), 0.0)
    assert cosine_incidence(nodes, threshold).float().mean().item() < 1 / 15 + 1e-3


def incidence_of(count, *hyperedges):
    """An incidence of one sample from the members of each hyperedge."""
    incidence = torch.zeros(1, count, len(hyperedges), dtype=torch.bool)
    for number, members in enumerate(hyperedges):
        incidence[0, list(members), number] = True
    return incidence


def test_facts_of_hyperedges_are_those_counted_by_hand():
    # Three modalities, each with two tokens of its image and one copy of the text: 0 1 t | 3 4 t | 6 7 t.
    hyperedges = [
        {0},  # alone
        {1, 0},  # one modality
        {2, 5, 8},  # three copies of the text
        {3, 1},  # two modalities
        {4, 2},  # an image and the text beside another image
        {5, 2},
        {6, 7, 8},  # an image and its own text
        {7},
        {8, 2, 0, 3},  # two modalities by their images, too
    ]
    facts = hyperedge_facts(incidence_of(9, *hyperedges), 3, has_text_copies=True)
    sizes = [len(members) for members in hyperedges]
    assert facts.size.item() == pytest.approx(sum(sizes) / 9)
    assert facts.density.item() == pytest.approx(sum(sizes) / 81)
    assert facts.alone.item() == pytest.approx(2 / 9)
    assert facts.across.item() == pytest.approx(2 / 9)
    assert facts.by_text.item() == pytest.approx(3 / 9)


def test_text_token_beside_all_patches_is_of_no_modality():
    facts = hyperedge_facts(incidence_of(7, {0, 6}, {2, 4}, {6, 0, 2}), 3, has_text_copies=False)
    assert facts.across.item() == pytest.approx(2 / 3)
    assert facts.by_text.item() == 0


def test_facts_are_of_each_sample():
    both = torch.stack([torch.eye(9, dtype=torch.bool), torch.ones(9, 9, dtype=torch.bool)])
    facts = hyperedge_facts(both, 3, has_text_copies=True)
    assert facts.alone.tolist() == [1, 0]
    assert facts.across.tolist() == [0, 1]
    assert facts.size.tolist() == [1, 9]
