from __future__ import annotations

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from patchranking import load_data, load_model
from patchranking.errors import UserError
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.masked import MAESettings, mae
from patchranking.pretrain.prototypes import Prototypes
from patchranking.pretrain.sampler import CurriculumSampler

for library in ("lightly", "skimage", "sklearn"):
    pytest.importorskip(library)

SMALL = MAESettings(
    image_size=16,
    patch_size=4,
    model_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    decoder_width=32,
    decoder_depth=1,
    clusters=2,
)
TRAINING = TrainSettings(epochs=4, batch_size=4, evaluations=2, learning_rate=1e-2)


@pytest.fixture
def data(noise_folder):
    folder = noise_folder("noise", ("cat", "dog"), 6)
    (folder / "cat" / "empty.png").touch()
    return load_data(str(folder))


def test_pictures_come_as_the_curriculum_says(data, tmp_path, monkeypatch):
    seen, read = [], type(data).image
    report = mae(data, data, tmp_path / "run", SMALL, TRAINING)
    assert report.n_images == 12
    assert report.skipped == {"cat/empty.png": "empty file"}
    assert report.prototypes.about["totals"] == {"in": 13, "out": 12, "failed": 1}
    distances = report.prototypes.distances[report.prototypes.usable]
    sampler = CurriculumSampler(distances, 4, SMALL.drawn(), 0)
    assert [report.sampler.share(epoch) for epoch in range(4)] == [sampler.share(epoch) for epoch in range(4)]
    assert report.progress.step == 4 * 12 / 4
    assert [row["share"] for row in report.progress.rows] == [0, 0.5, 1]
    assert all(0 <= row["knn"] <= 100 and 0 <= row["linear_probe"] <= 100 for row in report.progress.rows)
    used = [index for index, usable in enumerate(report.prototypes.usable) if usable]

    def noted(self, index):
        seen.append(index)
        return read(self, index)

    monkeypatch.setattr(type(data), "image", noted)
    mae(data, None, tmp_path / "again", SMALL, replace(TRAINING, in_memory=False))
    expected = [used[place] for epoch in range(4) for place in sampler.draw(epoch)]
    assert seen[-len(expected) :] == expected


def test_a_file_of_prototypes_gives_the_same_training(data, tmp_path):
    report = mae(data, None, tmp_path / "run", SMALL, TRAINING)
    file = tmp_path / "run" / "prototypes.parquet"
    again = mae(data, None, tmp_path / "again", replace(SMALL, curriculum=str(file)), TRAINING)
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert again.prototype_seconds < report.prototype_seconds
    assert not (tmp_path / "again" / "features").exists()


@pytest.mark.parametrize("curriculum", ["uniform", "hard-first", "fixed"])
def test_every_order_trains(data, tmp_path, curriculum):
    report = mae(data, None, tmp_path / "run", replace(SMALL, curriculum=curriculum), replace(TRAINING, epochs=2))
    assert (report.prototypes is None) == (curriculum == "uniform")
    assert report.sampler.curriculum.order == curriculum
    assert report.progress.step == 6
    tower = load_model(f"timm:local-dir:{tmp_path / 'run' / 'model'}").tower
    assert tower.depth == 1
    assert torch.equal(tower.module.blocks[0].attn.qkv.weight, report.model.encoder.blocks[0].attn.qkv.weight)


KILLED = """
import torch
from patchranking import load_data
from patchranking.extras import import_extra
from patchranking.pretrain import loop
from patchranking.pretrain.masked import mae, MAESettings

libraries = "lightly.models.modules lightly.transforms lightning_fabric timm.data timm.models timm.optim"
for name in libraries.split():
    import_extra(name, "", "")
torch.set_num_threads(1)
loop._SECONDS_PER_SAVE = 0.0

def run(data, out, prototypes):
    settings = MAESettings(
        image_size=16, patch_size=4, model_args={"embed_dim": 16, "depth": 1, "num_heads": 2}, decoder_width=32,
        decoder_depth=1, curriculum=prototypes,
    )
    training = loop.TrainSettings(epochs=3, batch_size=4, evaluations=2, learning_rate=1e-2)
    mae(load_data(data), None, out, settings, training)
"""


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(killed_forks, noise_folder, tmp_path):
    folder, file = noise_folder("noise", ("cat", "dog"), 4), tmp_path / "prototypes.parquet"
    keys, own = load_data(str(folder)).keys, np.arange(8, dtype=np.int32)
    Prototypes(keys, 0 * own, own.astype(np.float32) / 7, [""] * 8, {}).write(file)
    with killed_forks(KILLED) as ask:
        assert ask(6, folder, tmp_path / "killed", file) == -signal.SIGKILL
        for out in ("killed", "whole"):
            assert ask(0, folder, tmp_path / out, file) == 0
    for name in ("model/model.safetensors", "progress/stages/0500.safetensors", "progress/stages/1000.safetensors"):
        killed, whole = (load_file(tmp_path / out / name) for out in ("killed", "whole"))
        assert all(torch.equal(value, killed[key]) for key, value in whole.items())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"curriculum": "easy"}, "'curriculum' is one of prototype, hard-first, fixed, uniform, or a file"),
        ({"mask": 1.0}, "'mask' is a share above 0 and below 1"),
        ({"decoder_width": 40}, "'decoder_width' is a multiple of 32, not 40"),
        ({"start": 2.0}, "'start' is a share, at most 1"),
        ({"clusters": 0}, "'clusters' is a whole number, 1 or more"),
    ],
)
def test_wrong_settings_are_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        replace(SMALL, **wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mask": 0.01}, "Of 16 patches, 0.01 is none: hide more"),
        ({"model": "vit_tiny_patch16_none"}, "timm cannot make the model"),
        ({"model": "vit_small_patch14_reg4_dinov2"}, "a position for every token"),
        ({"clusters": 30}, "30 clusters are more than the 12 images"),
        ({"features": "nope"}, "Unknown model 'nope'"),
    ],
)
def test_what_does_not_fit_is_refused(data, tmp_path, wrong, words):
    with pytest.raises(UserError, match=words):
        mae(data, None, tmp_path / "run", replace(SMALL, **wrong), TRAINING)


def test_prototypes_of_other_pictures_and_another_order_are_refused(data, tmp_path):
    mae(data, None, tmp_path / "run", SMALL, TRAINING)
    file = str(tmp_path / "run" / "prototypes.parquet")
    with pytest.raises(UserError, match="have no distance, such as 'train/0000000'"):
        mae(load_data("demo:train", 4), None, tmp_path / "other", replace(SMALL, curriculum=file), TRAINING)
    with pytest.raises(UserError, match="holds the progress of another pretraining"):
        mae(data, None, tmp_path / "run", replace(SMALL, curriculum="hard-first"), TRAINING)
