from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from patchranking import load_data
from patchranking.errors import UserError
from patchranking.files import make_folder
from patchranking.pretrain import contrastive as contrastive_module
from patchranking.pretrain import gradients
from patchranking.pretrain.analysis import analyse
from patchranking.pretrain.compression import Compression
from patchranking.pretrain.contrastive import ContrastiveSettings, contrastive, make_objective
from patchranking.pretrain.encoder import normalisation_of
from patchranking.pretrain.gradients import GradientSettings, batch_gradients, candidates, spent_on
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.objective import Step
from patchranking.pretrain.pictures import Shuffled, Views, drop_noise, read_pictures
from patchranking.pretrain.progress import load_stage, stages_of

SMALL = ContrastiveSettings(
    image_size=16, patch_size=4, model_args={"embed_dim": 16, "depth": 1, "num_heads": 2}, head=16
)
TRAINING = TrainSettings(epochs=1, batch_size=4, evaluations=1)
SETTINGS = GradientSettings(base_batches=8, batches=4, batch_size=4, drops=[0.0, 0.5], groups=4)


@pytest.fixture
def data(noise_folder):
    return load_data(str(noise_folder("noise", ("cat", "dog"), 4)))


def test_a_gradient_is_that_of_its_batch_and_nothing_changes(data):
    objective = make_objective(replace(SMALL, method="dino")).train()
    pictures = read_pictures(data, 16, progress=False)
    views = Views(pictures, Shuffled(8, 0), objective.views(normalisation_of(objective.encoder)), 0)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    one = Compression(8, 0.5)
    (found,) = batch_gradients(objective, views, [3], one, SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    batch = [torch.stack(view) for view in zip(*(views[item] for item in range(12, 16)), strict=True)]
    objective(batch, Step(one, drop_noise(0, 3, 4), 0.5)).backward()
    expected = [weight.grad.flatten() for weight in objective.encoder.parameters()]
    torch.testing.assert_close(found, torch.cat(expected))


def test_views_that_all_compressions_share_are_made_once_where_they_fit(data, tmp_path, monkeypatch):
    objective, pictures = make_objective(SMALL).train(), read_pictures(data, 16, progress=False)
    made, get = [], Views.__getitem__
    monkeypatch.setattr(Views, "__getitem__", lambda self, item: made.append(item) or get(self, item))
    found = []
    for memory, times in ((1 << 30, 1), (0, 4)):
        monkeypatch.setattr(gradients, "_MEMORY", memory)
        about = objective, pictures, normalisation_of(objective.encoder), SETTINGS
        found.append(gradients.stage_errors(*about, make_folder(tmp_path / str(memory)), "start"))
        assert len(made) == 4 * (8 + times * 4)
        made.clear()
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_candidates_start_with_the_base_and_fit():
    objective = make_objective(SMALL)
    found = candidates(objective, SETTINGS)
    assert found[0] == objective.base
    assert set(found) == {Compression(size, drop) for size in (4, 8) for drop in (0.0, 0.5)}
    passes = sum(objective.passes(one) for one in found)
    assert spent_on(objective, SETTINGS) == pytest.approx(4 * (8 * 4 / 3 + 4 * passes))
    with pytest.raises(UserError, match="does not fit"):
        candidates(objective, replace(SETTINGS, patch_sizes=[6]))


def test_the_stages_of_a_training_are_analysed_and_resumed(data, tmp_path, monkeypatch):
    contrastive(data, None, tmp_path / "run", SMALL, TRAINING, "none")
    found = analyse(tmp_path / "run", data, SETTINGS, tmp_path / "errors")
    assert [(row["share"], row["patch_size"], row["drop"]) for row in found.rows] == [
        (share, size, drop) for share in (0.0, 1.0) for size in (4, 8) for drop in (0.0, 0.5)
    ]
    assert set(found.best) == {0.0, 1.0}
    assert found.schedule.stages[-1].compression == Compression(4)
    assert len(found.flat_rows()[0]) == len(found.rows[0]) + 3
    assert found.self_check.count("(") == 2

    parts = sorted((tmp_path / "errors" / "progress").glob("*patches*.json"))
    assert len(parts) == 8
    parts[3].unlink()
    assert analyse(tmp_path / "run", data, SETTINGS, tmp_path / "errors") == found
    with pytest.raises(UserError, match="holds the progress of another analysis"):
        analyse(tmp_path / "run", data, replace(SETTINGS, seed=1), tmp_path / "errors")


def test_a_schedule_found_by_the_search_is_paid_for(data, tmp_path, monkeypatch):
    monkeypatch.setattr(contrastive_module, "_BATCHES", (4, 3))
    training, settings = replace(TRAINING, epochs=30), replace(SMALL, image_size=8)
    with pytest.raises(UserError, match=r"To search for a schedule would take \d+% of the budget"):
        contrastive(data, None, tmp_path / "few", settings, replace(training, epochs=3), "auto")
    report = contrastive(data, None, tmp_path / "run", settings, training, "auto")
    assert 0.1 * report.budget < report.searched < 0.5 * report.budget
    assert report.progress.spent + report.searched == pytest.approx(report.budget, rel=0.05)
    assert (tmp_path / "run" / "search" / "errors.json").is_file()
    assert (tmp_path / "run" / "schedule.yaml").is_file()


def test_checkpoints_of_another_kind_are_refused(data, tmp_path):
    with pytest.raises(UserError, match="holds no weights of a pretraining"):
        stages_of(tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "0.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is no checkpoint of pretrain contrastive"):
        analyse(tmp_path, data, SETTINGS, tmp_path / "errors")
    contrastive(data, None, tmp_path / "run", SMALL, TRAINING, "none")
    with pytest.raises(UserError, match="of another model or method"):
        load_stage(stages_of(tmp_path / "run")[0], make_objective(replace(SMALL, method="simclr")))
    with pytest.raises(UserError, match="needs as many pictures, and there are 8"):
        analyse(tmp_path / "run", data, replace(SETTINGS, batch_size=9), tmp_path / "many")
