import numpy as np
import pytest

from experiments.reports import tsne_figure


def clusters(spread, identities=4, samples=12):
    generator = np.random.default_rng(0)
    centres = np.eye(identities, 16)
    identity = np.repeat(np.arange(identities), samples)
    return centres[identity] + spread * generator.standard_normal((len(identity), 16)), identity


def test_samples_are_spread_over_identities_and_within_each():
    identity = np.repeat(np.arange(100, 200), 90)
    shown = tsne_figure.choose_samples(identity)
    names, counts = np.unique(identity[shown], return_counts=True)
    assert names.tolist() == [100, 111, 122, 133, 144, 155, 166, 177, 188, 199]
    assert set(counts) == {tsne_figure.SAMPLES}
    assert len(set(shown.tolist())) == len(shown)


def test_small_set_is_shown_completely():
    assert sorted(tsne_figure.choose_samples(np.array([7, 9, 7, 9, 9]))) == [0, 1, 2, 3, 4]


def test_map_keeps_identities_together_and_shows_the_silhouette():
    apart, identity = clusters(0.02)
    mixed, _ = clusters(3.0)
    figure = tsne_figure.plot_tsne({"apart": apart, "mixed": mixed}, identity)
    scores = {
        title.split("\n")[0]: float(title.split()[-1]) for title in (a.get_title() for a in figure.axes)
    }
    assert scores["apart"] > 0.9
    assert scores["mixed"] < 0.2
    positions = [np.asarray(group.get_offsets()) for group in figure.axes[0].collections]
    assert [len(group) for group in positions] == [12] * 4
    centres = np.array([group.mean(axis=0) for group in positions])
    for number, group in enumerate(positions):
        nearest = np.linalg.norm(group[:, None] - centres, axis=2).argmin(axis=1)
        assert (nearest == number).all()


def test_norm_of_an_embedding_has_no_effect():
    embeddings, identity = clusters(0.3)
    longer = embeddings * np.linspace(1, 9, len(embeddings))[:, None]
    figure = tsne_figure.plot_tsne({"one": embeddings, "longer": longer}, identity)
    one, other = ([np.asarray(c.get_offsets()) for c in axes.collections] for axes in figure.axes)
    assert np.concatenate(one) == pytest.approx(np.concatenate(other), abs=1e-2)
