"""The small CLIP: a short training writes a folder that loads; the shipped one knows all modalities."""

import json

import pytest

from experiments import pretrain_clip
from experiments.pretraining.contrastive_training import held_out_accuracy, render_pairs
from experiments.pretraining.pretrained_clip import HELD_OUT
from experiments.recipes import DEMO_CLIP, ROOT
from stmi.clip.loading import load_clip
from stmi.modality import MODALITIES


def test_short_training_writes_a_folder_that_loads(tmp_path, capsys):
    arguments = ["--people", str(2 * (HELD_OUT + 8)), "--batch", "8", "--steps", "4", "--json"]
    assert pretrain_clip.main([*arguments, "--out", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (tmp_path / "SHA256SUMS").read_text().split()[0] == result["sha256"]
    assert load_clip(tmp_path).model.visual.image_size == (64, 32)
    assert result["chance"] == 1 / HELD_OUT
    assert set(result["held_out_accuracy"]) == set(MODALITIES)


@pytest.mark.parametrize("known", [{"RGB": 0.2, "NIR": 0.1, "TIR": 0.1}])
def test_shipped_clip_finds_the_sentences_of_people_it_never_saw(known):
    clip = load_clip(ROOT / DEMO_CLIP)
    # Another seed than that of its training: other people.
    found = held_out_accuracy(clip.model, clip.tokenizer, render_pairs(2 * HELD_OUT, seed=1))
    assert {name for name, least in known.items() if found[name] < least} == set(), found
