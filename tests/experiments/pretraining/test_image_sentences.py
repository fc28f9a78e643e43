"""Sentences of the small CLIP's training: each names what its image can show, and nothing else."""

import numpy as np
import pytest

from data_catalog.captions.sentences import write_caption
from data_catalog.synthetic import SyntheticSettings, find_twin, render_sample
from data_catalog.synthetic.attributes import CLOTH_COLOURS
from data_catalog.synthetic.canvas import NIR, TIR
from data_catalog.synthetic.identities import make_identity
from experiments.pretraining.image_sentences import LEVELS, SENTENCE, attributes_in_image, write_sentence
from stmi.modality import Modality

SETTINGS = SyntheticSettings(look_alikes=1.0)


def attributes(identity: int, modality: Modality, camera: int = 0) -> dict[str, str]:
    who = make_identity(SETTINGS, identity)
    return attributes_in_image(who, render_sample(SETTINGS, identity, camera, 0), modality)


def sentence(identity: int, modality: Modality) -> str:
    return write_caption(attributes(identity, modality), SENTENCE)


def test_rgb_has_the_true_colours_and_infrared_has_none():
    compared = 0
    for identity in range(1, 20):
        who = make_identity(SETTINGS, identity)
        for name in ("upper_colour", "lower_colour", "shoes_colour"):
            # One may be hidden behind something.
            if name in (seen := attributes(identity, Modality.RGB)):
                assert who.attributes[name] in seen[name].split()
                compared += 1
        for modality in (Modality.NIR, Modality.TIR):
            words = sentence(identity, modality).rstrip(".").replace(",", "").split()
            assert not set(CLOTH_COLOURS) & set(words)
    assert compared > 40


@pytest.mark.parametrize(("modality", "channel"), [(Modality.NIR, NIR), (Modality.TIR, TIR)])
def test_levels_are_named_in_the_order_of_the_channel(modality, channel):
    people = [make_identity(SETTINGS, identity) for identity in range(1, 60)]
    named = [
        (who.materials["lower"][channel], attributes(identity, modality)["lower_colour"])
        for identity, who in enumerate(people, start=1)
        if "lower_colour" in attributes(identity, modality)
    ]
    words = LEVELS[channel][1]
    assert {word for _, word in named} <= set(words)
    order = [words.index(word) for _, word in sorted(named)]
    assert order == sorted(order)
    assert len(set(order)) > 2


def test_twins_have_one_sentence_in_rgb_and_differ_in_one_other_spectrum():
    told_apart = set()
    for first in range(1, 40, 2):
        assert find_twin(SETTINGS, first) == first + 1
        # Of the same sample, so that the same is visible.
        sample = render_sample(SETTINGS, first, 0, 0)
        one, other = (
            {
                modality: attributes_in_image(make_identity(SETTINGS, identity), sample, modality)
                for modality in Modality
            }
            for identity in (first, first + 1)
        )
        assert one[Modality.RGB] == other[Modality.RGB]
        differing = [
            modality for modality in (Modality.NIR, Modality.TIR) if one[modality] != other[modality]
        ]
        assert len(differing) <= 1
        told_apart.update(differing)
    assert told_apart == {Modality.NIR, Modality.TIR}


def test_what_cannot_be_seen_is_not_said():
    for identity in range(1, 30):
        sample = render_sample(SETTINGS, identity, 0, 0)
        said = attributes_in_image(make_identity(SETTINGS, identity), sample, Modality.RGB)
        assert said.keys() <= sample.visible


def test_each_attribute_is_left_out_with_the_given_probability():
    known = attributes(1, Modality.NIR)
    assert write_sentence(known, np.random.default_rng(0), omitted=0.0) == write_caption(known, SENTENCE)
    assert write_sentence(known, np.random.default_rng(0), omitted=1.0) == ""
    some = {write_sentence(known, np.random.default_rng(seed), omitted=0.5) for seed in range(20)}
    assert len(some) > 10
