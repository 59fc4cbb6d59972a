from __future__ import annotations

import pytest
import torch

from patchranking import load_data
from patchranking.errors import UserError
from patchranking.pretrain.encoder import make_encoder, preprocess_of
from patchranking.pretrain.fine_tune import FineTuneSettings, fine_tune
from patchranking.pretrain.pictures import read_pictures
from patchranking.pretrain.probe import read_labelled

PLAIN = FineTuneSettings(
    epochs=30, batch_size=8, learning_rate=0.1, mixup=0.0, cutmix=0.0, erase=0.0, smoothing=0.0, drop_path=0.0
)


@pytest.fixture
def encoder():
    return make_encoder("vit_tiny_patch16_224", 16, 4, {"embed_dim": 16, "depth": 2, "num_heads": 2}, seed=0)


@pytest.fixture
def flat(tmp_path):
    """Dark and bright pictures."""
    from PIL import Image

    for name, level in (("dark", 40), ("bright", 200)):
        (tmp_path / name).mkdir()
        for index in range(6):
            Image.new("RGB", (20, 20), (level + index,) * 3).save(tmp_path / name / f"{index}.png")
    return load_data(str(tmp_path))


def test_it_learns_what_can_be_learned_and_leaves_the_encoder_alone(encoder, flat):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    pictures, test = read_pictures(flat, 16, progress=False), read_labelled(flat, preprocess_of(encoder))
    assert fine_tune(encoder, pictures, test, PLAIN) == 1
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert set(encoder.state_dict()) == set(before)


def test_the_whole_recipe_is_the_same_in_every_run(encoder, flat):
    pictures, test = read_pictures(flat, 16, progress=False), read_labelled(flat, preprocess_of(encoder))
    found = {fine_tune(encoder, pictures, test, FineTuneSettings(epochs=2, batch_size=4)) for _ in range(2)}
    assert len(found) == 1


def test_mistakes_are_one_sentence(encoder, flat, noise_folder):
    with pytest.raises(UserError, match="mixed in pairs"):
        FineTuneSettings(batch_size=3)
    unlabelled = read_pictures(load_data(str(noise_folder("noise", ("cat",), 3) / "cat")), 16, progress=False)
    with pytest.raises(UserError, match="needs classes"):
        fine_tune(encoder, unlabelled, read_labelled(flat, preprocess_of(encoder)), PLAIN)
