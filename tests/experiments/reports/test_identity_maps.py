import numpy as np
import pytest

from experiments.reports import identity_maps


def clusters(spread, identities=4, samples=12):
    generator = np.random.default_rng(0)
    centres = np.eye(identities, 16)
    identity = np.repeat(np.arange(identities), samples)
    return centres[identity] + spread * generator.standard_normal((len(identity), 16)), identity


def test_shown_rows_spread_over_identities_and_over_samples_of_each():
    identity = np.repeat(np.arange(100, 200), 90)
    shown = identity_maps.shown_rows(identity)
    names, counts = np.unique(identity[shown], return_counts=True)
    assert names.tolist() == [100, 111, 122, 133, 144, 155, 166, 177, 188, 199]
    assert set(counts) == {identity_maps.SAMPLES}
    assert len(set(shown.tolist())) == len(shown)


def test_shown_rows_of_a_small_set_are_all():
    assert sorted(identity_maps.shown_rows(np.array([7, 9, 7, 9, 9]))) == [0, 1, 2, 3, 4]


def test_map_keeps_identities_together_and_names_how_well_they_are_apart():
    apart, identity = clusters(0.02)
    mixed, _ = clusters(3.0)
    figure = identity_maps.identity_maps({"apart": apart, "mixed": mixed}, identity)
    scores = {
        title.split("\n")[0]: float(title.split()[-1]) for title in (a.get_title() for a in figure.axes)
    }
    assert scores["apart"] > 0.9
    assert scores["mixed"] < 0.2
    places = [np.asarray(group.get_offsets()) for group in figure.axes[0].collections]
    assert [len(group) for group in places] == [12] * 4
    centres = np.array([group.mean(axis=0) for group in places])
    for number, group in enumerate(places):
        nearest = np.linalg.norm(group[:, None] - centres, axis=2).argmin(axis=1)
        assert (nearest == number).all()


def test_length_of_an_embedding_does_not_count():
    embeddings, identity = clusters(0.3)
    longer = embeddings * np.linspace(1, 9, len(embeddings))[:, None]
    figure = identity_maps.identity_maps({"one": embeddings, "longer": longer}, identity)
    one, other = ([np.asarray(c.get_offsets()) for c in axes.collections] for axes in figure.axes)
    assert np.concatenate(one) == pytest.approx(np.concatenate(other), abs=1e-2)
