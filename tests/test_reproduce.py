from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data import load_data
from patchranking.errors import UserError
from patchranking.fitting.fit import fit
from patchranking.fitting.settings import FitSettings
from patchranking.methods import METHODS
from patchranking.methods.a_vit import a_vit
from patchranking.methods.measure import measure, zero_shot_classes
from patchranking.predictor.measures import matching_rate
from patchranking.predictor.networks import Predictor
from patchranking.prompts.tokens import Prompts
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.ranking.store import finished_manifest, iter_rankings
from patchranking.reproduce import Job, reproduce
from patchranking.towers.identity import BaseModel
from patchranking.tuning.tune import TuneSettings

PROGRESSIVE = Schedule({block: 1 - 20 / 196 * stage for stage, block in enumerate((3, 5, 7, 9), 1)})
CLASSES = ("red", "green", "blue", "pink")


def pictures(folder, seed):
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(3):
            noise = rng.integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(noise // 2 + rng.integers(0, 128, 3, np.uint8)).save(folder / name / f"{number}.png")
    return load_data(str(folder))


@pytest.fixture
def job(loaded_deep, tmp_path):
    test, train = pictures(tmp_path / "flowers" / "test", 0), pictures(tmp_path / "flowers" / "train", 1)
    fitting = FitSettings(ranked=5, steps=2, epochs=2)
    tuning = TuneSettings(shots=1, epochs=2, num_tokens=2, batch_size=4, augment=False)
    return Job(loaded_deep, test, train, None, tmp_path / "out", fitting, tuning, 0)


def cells(rows):
    return {(row["row"], row["column"]): row["measured"] for row in rows}


def pixels_of(job, images=range(12)):
    return torch.stack([job.model.preprocess(job.test.image(image)) for image in images])


@torch.inference_mode()
def accuracy(job, encode, classes=None, images=range(12)):
    classes = zero_shot_classes(job.model, job.test) if classes is None else classes
    labels = torch.tensor([job.test.labels[image] for image in images])
    return 100 * (encode(pixels_of(job, images)) @ classes.T).argmax(1).eq(labels).float().mean().item()


def attached_accuracy(job, pruner, schedule, classes=None):
    with pruner.scheduled(schedule).attached(job.model.model):
        return accuracy(job, job.model.tower, classes)


def test_table4_prunes_in_four_stages(job):
    rows, tower = reproduce("table4", job), job.model.tower
    found = cells(rows)
    assert list(found) == [(name, "progressive") for name in ("dense", "evit", "a-vit", "tome", "patchranking")]
    assert found["dense", "progressive"] == pytest.approx(accuracy(job, tower))
    halted = accuracy(job, lambda pixels: a_vit(tower, tower.embed(pixels), PROGRESSIVE).features)
    assert found["a-vit", "progressive"] == pytest.approx(halted)
    merged = accuracy(job, METHODS["tome"].at(tower, PROGRESSIVE, 0))
    assert found["tome", "progressive"] == pytest.approx(merged)
    fused = accuracy(job, METHODS["evit"].at(tower, PROGRESSIVE, 0))
    assert found["evit", "progressive"] == pytest.approx(fused)
    fitted = Pruner.from_pretrained(job.out / "pruner-3")
    assert fitted.fitted == Schedule({3: 0.6})
    assert found["patchranking", "progressive"] == pytest.approx(attached_accuracy(job, fitted, PROGRESSIVE))
    assert {row["row"]: row["published"] for row in rows} == {
        "dense": None,
        "evit": 67.1,
        "a-vit": 67.7,
        "tome": 67.7,
        "patchranking": 67.9,
    }
    assert {(row["table"], row["dataset"], row["oracle"]) for row in rows} == {("table4", "flowers/test", False)}


def test_figure5_prunes_before_the_first_layer(job):
    job.test.name, rates = "noise", (0.9, 0.8, 0.7, 0.6, 0.5)
    rows = reproduce("figure5", job)
    found, pruner, tower = cells(rows), Pruner.from_pretrained(job.out / "pruner-0"), job.model.tower
    assert list(found) == [(name, f"{rate:.0%}") for rate in rates for name in ("cls-attention", "patchranking")]
    for rate in rates:
        schedule = Schedule({0: rate})
        by_attention = accuracy(job, METHODS["cls-attention"].at(tower, schedule, 0))
        assert found["cls-attention", f"{rate:.0%}"] == pytest.approx(by_attention)
        assert found["patchranking", f"{rate:.0%}"] == pytest.approx(attached_accuracy(job, pruner, schedule))
    assert {row["published"] for row in rows} == {None}


def test_a_pruner_given_is_taken_without_its_tokens_where_it_prunes_before_the_same_block(job, monkeypatch):
    tower = job.model.tower
    prompts = Prompts("visual", 16, 32, num_tokens=2)
    given = Pruner(
        {0: Predictor.for_tower(tower)}, BaseModel.of(tower, "tiny"), Schedule({0: 0.3}), None, prompts
    ).eval()
    job, seen = replace(job, pruner=given, train=None), {}

    def spied(model, data, encodings):
        seen.update(encodings)
        return measure(model, data, encodings, progress=None)

    monkeypatch.setattr("patchranking.reproduce.measure", spied)
    reproduce("figure5", job)
    pixels = pixels_of(job)
    with torch.inference_mode():
        found = seen["patchranking", "60%"](pixels)
        with given.untuned.scheduled(Schedule({0: 0.6})).attached(tower):
            assert torch.equal(tower(pixels), found)
    assert (given.keep, given.tuned) == (0.3, "visual")
    with pytest.raises(UserError, match="a pruner that drops before block 3: give --train"):
        reproduce("table4", job)


def test_a_pruner_is_fitted_once_for_a_folder(job):
    first = cells(reproduce("figure5", job))
    written = (job.out / "pruner-0" / "model.safetensors").stat().st_mtime_ns
    assert cells(reproduce("figure5", replace(job, train=None))) == first
    assert (job.out / "pruner-0" / "model.safetensors").stat().st_mtime_ns == written


def test_table1_has_oracles_on_the_images_they_ranked_and_matching_rates(job, monkeypatch):
    fitted = []

    def spied(model, data, out, settings):
        fitted.append((settings.objective, settings.search, settings.score, settings.blocks, settings.ranked))
        return fit(model, data, out, settings)

    monkeypatch.setattr("patchranking.reproduce.fit", spied)
    job.test.name = "FGVCAircraft"
    rows, tower = reproduce("table1", job), job.model.tower
    found, published = cells(rows), {(row["row"], row["column"]): row["published"] for row in rows}
    columns, index_of = ("80%", "70%", "60%", "50%"), {key: index for index, key in enumerate(job.test.keys)}
    assert [key for key in found if key[0] == "dense"] == [("dense", column) for column in columns]
    assert found["dense", "50%"] == pytest.approx(accuracy(job, tower))
    for score in ("label", "confidence", "preservation"):
        rankings = iter_rankings(job.out / f"rankings-test-leave-out-{score}-3")
        golden = {index_of[key]: torch.from_numpy(importance) for key, importance in rankings}
        assert len(golden) == 5
        settings = finished_manifest(job.out / f"rankings-test-leave-out-{score}-3")["settings"]
        assert (settings["search"], settings["score"], settings["block"]) == ("leave-out", score, 3)
        importance = torch.stack(list(golden.values()))
        pruner = Pruner.from_pretrained(job.out / f"pruner-leave-out-{score}")
        for column, rate in zip(columns, (0.8, 0.7, 0.6, 0.5), strict=True):

            def by_golden(pixels, importance=importance, rate=rate):
                kept = top_patches(importance, round(16 * rate))
                return tower.pool(tower.run(gather_tokens(tower.embed(pixels, 3), kept, 1), 3))

            expected = accuracy(job, by_golden, images=golden)
            assert found[f"golden, {score}", column] == pytest.approx(expected)
            predicted = attached_accuracy(job, pruner, Schedule({3: rate}))
            assert found[f"predicted, {score}", column] == pytest.approx(predicted)
        with torch.inference_mode():
            scores = pruner(tower.embed(pixels_of(job, golden), 3))
        matching = 100 * matching_rate(scores, importance, 8)
        assert found[f"matching rate, {score}", "80%"] == pytest.approx(matching)
    scores = ("label", "confidence", "preservation")
    assert fitted == [("imitate", "leave-out", score, [3], 5) for score in scores]
    oracles = {row["row"] for row in rows if row["oracle"]}
    assert oracles >= {"golden, label", "golden, confidence", "golden, preservation"}
    assert not oracles & {"dense", "predicted, confidence", "predicted, preservation", "matching rate, preservation"}
    assert [published["golden, label", column] for column in columns] == [43.5, 43.6, 44.2, 43.5]
    assert published["matching rate, preservation", "80%"] == 89.3


def test_table5_tunes_tokens_on_the_dense_and_on_the_pruned_model(job):
    found = cells(reproduce("table5", job))
    names = ["dense", "pruned", "dense + text", "pruned + text", "dense + both", "pruned + both"]
    assert list(found) == [(name, "progressive") for name in names]
    fitted = Pruner.from_pretrained(job.out / "pruner-3")
    assert found["dense", "progressive"] == pytest.approx(accuracy(job, job.model.tower))
    assert found["pruned", "progressive"] == pytest.approx(attached_accuracy(job, fitted, PROGRESSIVE))
    for tokens in ("text", "both"):
        for row, schedule in (("dense", PROGRESSIVE.at(1.0)), ("pruned", PROGRESSIVE)):
            rates = "-".join(f"{block}-{round(100 * rate)}" for block, rate in schedule.stages.items())
            tuned = Pruner.from_pretrained(job.out / f"tuned-{tokens}-{rates}")
            assert (tuned.tuned, tuned.fitted) == (tokens, schedule)
            expected = attached_accuracy(job, tuned, schedule, tuned.text_features(job.test.class_names))
            assert found[f"{row} + {tokens}", "progressive"] == pytest.approx(expected)


def test_figure1_goes_down_from_all_patches_with_tokens_and_without(job, monkeypatch):
    tuned = []

    def tune(model, data, pruner, out, settings):
        assert data is job.train
        tuned.append((pruner.fitted, settings.tokens, settings.seed))
        prompts = Prompts(settings.tokens, 16, 32, num_tokens=2, class_names=CLASSES, features=24)
        prompts.class_features.copy_(zero_shot_classes(job.model, job.test))
        return pruner.tuned_by(prompts), None

    monkeypatch.setattr("patchranking.reproduce.tune", tune)
    tower = job.model.tower
    given = Pruner({3: Predictor.for_tower(tower)}, BaseModel.of(tower, "tiny"), Schedule({3: 0.3})).eval()
    found = cells(reproduce("figure1", replace(job, pruner=given, seed=4)))
    rates = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    names = ("cls-attention", "patchranking", "patchranking + text", "patchranking + both")
    assert list(found) == [(name, f"{rate:.0%}") for rate in rates for name in names]
    assert tuned == [(Schedule({3: rate}), tokens, 4) for rate in rates for tokens in ("text", "both")]
    for rate in rates:
        expected = attached_accuracy(job, given, Schedule({3: rate}))
        assert found["patchranking", f"{rate:.0%}"] == pytest.approx(expected)
        assert found["cls-attention", "100%"] == found["patchranking", "100%"] == pytest.approx(accuracy(job, tower))


def test_what_is_missing_is_named(job):
    with pytest.raises(UserError, match="a pruner that drops before block 0: give --train"):
        reproduce("figure5", replace(job, train=None))
    with pytest.raises(UserError, match="images to fit the paper's predictor to: give --train"):
        reproduce("table1", replace(job, train=None))
    with pytest.raises(UserError, match="need classes"):
        reproduce("table4", replace(job, model=replace(job.model, text=None)))
    job.test.labels = None
    with pytest.raises(UserError, match="need classes"):
        reproduce("table4", job)
