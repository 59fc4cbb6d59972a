from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from patchranking import Encoder, ExportSettings, Pruner, UserError, export
from patchranking.data import load_data
from patchranking.evaluation.evaluate import EvaluationSettings, evaluate
from patchranking.evaluation.speed import SpeedSettings
from patchranking.exporting.method import ExportedFile
from patchranking.exporting.speed import measure_file_speed
from patchranking.pruning.schedule import Schedule


@pytest.fixture(scope="module")
def file(images, pruner, tmp_path_factory):
    """A pruned export."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    export(images, folder, pruner, ExportSettings("torch"))
    return ExportedFile(Encoder.from_pretrained(folder))


def test_a_file_is_a_row_beside_the_pruner_that_is_in_it(tinier, file, pruner):
    data = load_data("demo:val", 24)
    settings = EvaluationSettings([], [0.5], timing_batch=2, index_images=24)
    results, _ = evaluate(tinier, data, [pruner], settings, files=[file])
    dense, own, exported = results["rows"]
    assert [row["method"] for row in results["rows"]] == ["dense", "patchranking", "exported"]
    for name in ("top1", "index_overlap_at_10", "kept_patches", "keep_rate", "n_images", "schedule"):
        assert exported[name] == own[name]
    assert exported["feature_cosine"] == pytest.approx(own["feature_cosine"], abs=1e-5)
    assert exported["gmacs_analytic"] == own["gmacs_analytic"]
    assert exported["macs_share"] == pytest.approx(file.about.macs_share)
    assert exported["images_per_second"] > 0
    assert dense["images_per_second"] > 0


def test_a_file_is_timed_in_turn_with_the_model_that_it_was_made_of(images, file):
    settings = SpeedSettings(batches=[1, 3], repeats=1, seconds=0)
    rows = measure_file_speed(images, file, settings)
    told = [(row["batch"], row["backend"], row["precision"], row["keep_rate"]) for row in rows]
    assert told == [(b, *one) for b in (1, 3) for one in (("eager", "fp32", 1.0), ("torch", "fp32", 0.5))]
    assert [row["ratio_to_stock"] for row in rows[::2]] == [1, 1]
    assert rows[1]["gmacs"] == pytest.approx(rows[0]["gmacs"] * file.about.macs_share)
    with pytest.raises(UserError, match="leave --keep, --macs"):
        measure_file_speed(images, file, SpeedSettings(macs=[0.5]))


def test_another_models_file_is_refused(loaded, file):
    with pytest.raises(UserError, match="was made of 'tiny', and what has that name here is another"):
        file.check(loaded.tower)


def test_tuned_class_features_are_those_of_the_images_or_refused(tinier, tmp_path):
    from patchranking.prompts.tokens import Prompts

    data = load_data("demo:val", 12)
    prompts = Prompts("text", 16, 32, 2, class_names=list(data.class_names), features=24)
    prompts.class_features.copy_(torch.nn.functional.normalize(torch.randn(len(data.class_names), 24), dim=-1))
    torch.manual_seed(0)
    pruner = Pruner.unfitted(tinier.tower, "tiny", Schedule({1: 0.5})).tuned_by(prompts)
    export(replace(tinier, text=None), tmp_path / "out", pruner, ExportSettings("torch"))
    file = ExportedFile(Encoder.from_pretrained(tmp_path / "out"))
    file.check(tinier.tower, data)
    encoding = file.at(tinier.tower, pruner.schedule, 0)
    np.testing.assert_allclose(encoding.classes, prompts.class_features)
    data.class_names = data.class_names[::-1]
    with pytest.raises(UserError, match="other classes than demo"):
        file.check(tinier.tower, data)
