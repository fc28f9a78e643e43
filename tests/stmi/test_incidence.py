import pytest
import torch
from torch.nn import functional

from stmi.config import ChiConfig
from stmi.incidence import (
    IncidenceRule,
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


def pairs_of(nodes):
    count = nodes.shape[1]
    return cosine_similarities(nodes)[:, torch.ones(count, count, dtype=torch.bool).triu(1)]


@pytest.mark.parametrize("density", [0.12, 0.3, 0.5, 0.9, 1.0])
def test_threshold_of_a_density_gives_that_share_of_incidences(density):
    nodes = nodes_of(batch=40, count=15, width=6)
    threshold = density_threshold(pairs_of(nodes), density, 15)
    assert cosine_incidence(nodes, threshold).float().mean().item() == pytest.approx(density, abs=2e-4)


def test_threshold_of_a_density_that_cannot_be_is_the_highest_similarity():
    nodes = nodes_of(batch=40, count=15, width=6)
    assert density_threshold(pairs_of(nodes), 0.01, 15) == pairs_of(nodes).max()


def test_estimate_of_tau_comes_to_the_density_asked_for_and_then_stays():
    rule = IncidenceRule(ChiConfig(incidence="density", density=0.4), 15, has_text_copies=True)
    for seed in range(60):
        rule.follow(rule(nodes_of(batch=20, count=15, width=6, seed=seed)).similarities)
    unseen, found = nodes_of(batch=200, count=15, width=6, seed=99), rule.threshold.item()
    rule.eval()
    assert rule(unseen).facts.density.mean().item() == pytest.approx(0.4, abs=0.02)
    # Of one sample as of all of them, and without a trace of either.
    assert torch.equal(rule(unseen[:1]).incidence[0], rule(unseen).incidence[0])
    assert rule.threshold.item() == found
    assert rule(unseen).similarities is None


@pytest.mark.parametrize("rule", ["cosine", "euclidean", "nearest", "density"])
def test_text_copies_that_are_left_out_are_alone_and_the_others_meet_as_without_them(rule):
    nodes, copies = nodes_of(), [2, 5, 8]
    others = [node for node in range(9) if node not in copies]
    chosen = ChiConfig(
        incidence=rule,
        similarity_threshold=0.1,
        distance_threshold=2.0,
        neighbours=2,
        exclude_text_copies=True,
    )
    found = IncidenceRule(chosen, 9, has_text_copies=True)(nodes)
    expected = IncidenceRule(chosen, 6, has_text_copies=False)(nodes[:, others])
    assert torch.equal(found.incidence[:, others][:, :, others], expected.incidence)
    assert torch.equal(found.incidence[:, copies], torch.eye(9, dtype=torch.bool)[copies].expand(2, -1, -1))
    assert torch.equal(found.incidence[:, :, copies].sum(dim=1), torch.ones(2, 3, dtype=torch.int64))
    assert torch.equal(found.facts.size, expected.facts.size)
    assert not found.facts.by_text.any()
    if rule == "density":
        assert torch.equal(found.similarities, expected.similarities)


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
    assert facts.alone.item() == pytest.approx(2 / 6)
    assert facts.across.item() == pytest.approx(2 / 9)
    assert facts.by_text.item() == pytest.approx(3 / 9)


def test_text_token_beside_all_patches_is_of_no_modality():
    hyperedges = [{0, 6}, {1}, {2, 4}, {3}, {4}, {5}, {6, 0, 2}]
    facts = hyperedge_facts(incidence_of(7, *hyperedges), 3, has_text_copies=False)
    assert facts.across.item() == pytest.approx(2 / 7)
    assert facts.alone.item() == pytest.approx(4 / 6)
    assert facts.by_text.item() == 0


def test_facts_are_of_each_sample():
    both = torch.stack([torch.eye(9, dtype=torch.bool), torch.ones(9, 9, dtype=torch.bool)])
    facts = hyperedge_facts(both, 3, has_text_copies=True)
    assert facts.alone.tolist() == [1, 0]
    assert facts.across.tolist() == [0, 1]
    assert facts.size.tolist() == [1, 9]
