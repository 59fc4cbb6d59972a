from __future__ import annotations

import json
import math
from itertools import chain

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from patchranking.data import load_data
from patchranking.data.datasets import FolderData
from patchranking.errors import UserError
from patchranking.evaluation.cost import count_macs
from patchranking.evaluation.evaluate import EvaluationSettings, evaluate
from patchranking.methods import METHODS
from patchranking.methods.journal import Journal
from patchranking.methods.measure import measure
from patchranking.methods.tome import tome_schedule
from patchranking.predictor.doubt import Doubt
from patchranking.predictor.networks import Predictor
from patchranking.prompts.tokens import Prompts
from patchranking.pruner import Pruner
from patchranking.pruning.macs import keep_at_macs
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.sketched import sketched
from patchranking.towers.identity import BaseModel


@pytest.fixture
def data(noise_folder):
    folder = noise_folder("toy", ("red", "green"), 5)
    (folder / "red" / "broken.png").write_bytes(b"\x89PNG")
    return FolderData([folder], None, 0)


@pytest.fixture
def pruner(loaded):
    predictor = Predictor.for_tower(loaded.tower)
    return Pruner({3: predictor}, BaseModel.of(loaded.tower, "tiny"), Schedule({3: 0.6})).eval()


def settings(**changes):
    given = {"keep": [1.0, 0.5], "golden_images": 4, "timing_batch": 2, "batch_size": 3, "examples": 2, "worst": 0}
    return EvaluationSettings(**(given | changes))


def by_method(results, rate):
    return {row["method"]: row for row in results["rows"] if row["keep_rate"] == rate}


def test_rows_examples_and_totals(loaded, data, pruner):
    results, shown = evaluate(loaded, data, [pruner], settings())
    assert list(by_method(results, 1.0)) == ["dense"]
    pruned = by_method(results, 0.5)
    assert list(pruned) == ["patchranking", "random", "cls-attention", "evit", "tome", "golden"]
    assert [row["oracle"] for row in pruned.values()] == [False, False, False, False, False, True]
    assert [row["n_images"] for row in pruned.values()] == [10, 10, 10, 10, 10, 4]
    merged = pruned.pop("tome")
    assert len(merged["schedule"]) == loaded.tower.depth
    assert merged["kept_patches"] == round(16 * list(merged["schedule"].values())[-1])
    at_their_best = [pruned.pop(name) for name in ("cls-attention", "evit")]
    assert all(row["schedule"] != {"3": 0.5} for row in at_their_best)
    assert all(row["kept_patches"] == 8 and row["schedule"] == {"3": 0.5} for row in pruned.values())
    assert results["images"] == {"in": 11, "evaluated": 10, "skipped": 1, "left_out": 0}
    assert list(results["skipped"]) == ["red/broken.png"]
    assert len(shown) == 2
    assert shown[0].importance.shape == (4, 4)
    assert shown[0].views["patchranking"][0.5].kept.sum() == 8
    json.dumps(results, allow_nan=False)


def test_figures_equal_the_attached_model_and_the_golden_ranking(loaded, data, pruner):
    results, _ = evaluate(loaded, data, [pruner], settings(golden_images=11))
    indices = [index for index, key in enumerate(data.keys) if "broken" not in key]
    pixels = torch.stack([loaded.preprocess(data.image(index)) for index in indices])
    classes = F.normalize(loaded.text([f"a photo of a {name}." for name in data.class_names]), dim=-1)
    labels = torch.tensor([data.labels[index] for index in indices])

    def figures(features, dense):
        hits = (F.normalize(features, dim=-1) @ classes.T).argmax(-1) == labels
        return 100 * hits.float().mean().item(), torch.cosine_similarity(features, dense).mean().item()

    with torch.inference_mode():
        dense = loaded.tower(pixels)
        pruner.keep = 0.5
        with pruner.attached(loaded.tower):
            pruned = loaded.tower(pixels)
        order = sketched(loaded.tower, pixels).removal_order
        tokens = loaded.tower.embed(pixels, 3)
        kept = [torch.cat([t[:1], t[1:][o[8:].sort().values]]) for t, o in zip(tokens, order, strict=True)]
        golden = loaded.tower.pool(loaded.tower.run(torch.stack(kept), 3))
    rows = by_method(results, 0.5)
    for features, row, tolerance in (
        (dense, by_method(results, 1.0)["dense"], 1e-5),
        (pruned, rows["patchranking"], 1e-5),
        (golden, rows["golden"], 1e-3),  # in other batches, rounding may swap two patches
    ):
        top1, cosine = figures(features, dense)
        assert row["top1"] == pytest.approx(top1)
        assert row["feature_cosine"] == pytest.approx(cosine, abs=tolerance)
    assert rows["golden"]["same_images"]["patchranking"]["feature_cosine"] == rows["patchranking"]["feature_cosine"]


def test_evaluating_again_changes_nothing(loaded, data, pruner):
    first, again = (evaluate(loaded, data, [pruner], settings(timing_batch=0))[0] for _ in range(2))
    assert first == again


@pytest.mark.parametrize("batches", [1, 3])
def test_a_killed_evaluation_goes_on_and_ends_the_same(loaded, data, pruner, tmp_path, monkeypatch, batches):
    monkeypatch.setattr("patchranking.methods.journal._SECONDS_PER_PART", -1)
    chosen = settings(timing_batch=0, methods=["random", "evit", "golden"])
    whole, shown = evaluate(loaded, data, [pruner], chosen)
    note, noted = Journal.note, []

    def killed(self, tally, images, last=False):
        note(self, tally, images, last)
        noted.append(images)
        if len(noted) == batches:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "note", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(loaded, data, [pruner], chosen, progress=tmp_path / "progress")
    read, image = [], data.image
    monkeypatch.setattr(data, "image", lambda index: read.append(index) or image(index))
    again, shown_again = evaluate(loaded, data, [pruner], chosen, progress=tmp_path / "progress")
    assert again == whole
    assert [(one.key, one.worst, one.prediction) for one in shown_again] == [
        (one.key, one.worst, one.prediction) for one in shown
    ]
    assert not set(read[: len(data) - 3 * batches]) & {*chain(*noted[:batches])}
    with pytest.raises(UserError, match="the progress of another evaluation"):
        evaluate(loaded, data, [pruner], settings(seed=3), progress=tmp_path / "progress")


def test_costs_include_the_predictor_and_fall_with_the_keep_rate(loaded, data, pruner):
    results, _ = evaluate(loaded, data, [pruner], settings(methods=["random", "golden"], keep=[1.0, 0.75, 0.5]))
    dense = by_method(results, 1.0)["dense"]
    assert dense["gmacs"] == dense["gmacs_dense"]
    half, most = by_method(results, 0.5), by_method(results, 0.75)
    assert half["random"]["gmacs"] == half["golden"]["gmacs"] < half["patchranking"]["gmacs"]
    assert half["random"]["gmacs"] < most["random"]["gmacs"] < dense["gmacs"]
    assert half["random"]["gmacs"] == pytest.approx(half["random"]["gmacs_analytic"], rel=0.01)
    assert half["patchranking"]["images_per_second"] > 0
    assert half["golden"]["images_per_second"] is None


def test_unlabelled_images_have_no_top1(loaded, data):
    data.labels = None
    results, _ = evaluate(loaded, data, [], settings())
    assert {row["top1"] for row in results["rows"]} == {None}


def test_wrong_settings_are_refused(loaded, data, pruner):
    with pytest.raises(UserError, match=r"Unknown method 'rnadom': choose from tome, .*, random, golden"):
        evaluate(loaded, data, [pruner], settings(methods=["rnadom"]))
    with pytest.raises(UserError, match="keep rate"):
        evaluate(loaded, data, [pruner], settings(keep=[1.5]))


def test_stages_and_evit_in_stages_are_measured_as_they_run(loaded, data):
    tower, schedule = loaded.tower, Schedule({1: 0.8, 3: 0.5})
    pruner = Pruner({1: Predictor(tower.width, 1, 16)}, BaseModel.of(tower, "tiny"), schedule).eval()
    results, _ = evaluate(loaded, data, [pruner], settings(methods=["evit", "tome"], keep=[0.5, 0.25]))
    rows = {(row["method"], row["keep_rate"]): row for row in results["rows"]}
    assert rows["patchranking", 0.5]["schedule"] == {"1": 0.8, "3": 0.5}
    assert rows["patchranking", 0.25]["schedule"] == pytest.approx({"1": 0.64, "3": 0.25})
    beside = METHODS["evit"].beside(tower, schedule, 0)
    assert rows["evit", 0.5]["schedule"] == beside.schedule.to_dict()
    assert rows["tome", 0.5]["schedule"] == tome_schedule(tower, schedule).to_dict()
    readable = [index for index, key in enumerate(data.keys) if "broken" not in key]
    pixels = torch.stack([loaded.preprocess(data.image(index)) for index in readable])
    pruner.keep = 0.5

    with torch.inference_mode():
        full = tower(pixels)
        with pruner.attached(tower):
            cosine = F.cosine_similarity(tower(pixels), full).mean().item()
        merged = F.cosine_similarity(METHODS["tome"].at(tower, schedule, 0)(pixels), full).mean().item()
        fused = F.cosine_similarity(beside(pixels), full).mean().item()
    assert rows["evit", 0.5]["feature_cosine"] == pytest.approx(fused, abs=1e-5)
    assert rows["tome", 0.5]["feature_cosine"] == pytest.approx(merged, abs=1e-5)
    assert rows["patchranking", 0.5]["feature_cosine"] == pytest.approx(cosine, abs=1e-5)


def test_tuned_tokens_have_rows_of_their_own(loaded, data, pruner):
    tower = loaded.tower
    prompts = {
        kind: Prompts(kind, 16, tower.width, num_tokens=3, class_names=data.class_names, features=24)
        for kind in ("text", "both")
    }
    tuned = [pruner.tuned_by(found) for found in prompts.values()]
    classes = F.normalize(torch.randn(2, 24), dim=-1)
    for found in prompts.values():
        found.class_features.copy_(classes)
    results, _ = evaluate(loaded, data, [pruner, *tuned], settings(methods=["cls-attention"]))
    rows = {(row["method"], row["tuned"], row["keep_rate"]): row for row in results["rows"]}
    kinds = ("none", "text", "both")
    assert list(rows) == [
        *(("dense", kind, 1.0) for kind in kinds),
        *(("patchranking", kind, 0.5) for kind in kinds),
        ("cls-attention", "none", 0.5),
    ]
    readable = [index for index, key in enumerate(data.keys) if "broken" not in key]
    pixels = torch.stack([loaded.preprocess(data.image(index)) for index in readable])
    labels = torch.tensor([data.labels[index] for index in readable])
    tuned[1].keep = 0.5
    with torch.inference_mode(), tuned[1].attached(tower):
        features = tower(pixels)
    top1 = 100 * (features @ classes.T).argmax(1).eq(labels).float().mean().item()
    assert rows["patchranking", "both", 0.5]["top1"] == pytest.approx(top1)
    for name in ("feature_cosine", "gmacs"):
        assert rows["patchranking", "text", 0.5][name] == pytest.approx(rows["patchranking", "none", 0.5][name])
    for method, rate in (("dense", 1.0), ("patchranking", 0.5)):
        row, plain = rows[method, "both", rate], rows[method, "none", rate]
        more, by_formula = (row[count] - plain[count] for count in ("gmacs", "gmacs_analytic"))
        assert more == pytest.approx(by_formula, rel=0.02)
        assert more > 0


def test_tuned_pruners_alone_bring_the_untuned_rows(loaded, data, pruner):
    tuned = pruner.tuned_by(Prompts("visual", 16, loaded.tower.width, num_tokens=3))
    given = settings(methods=["random"], timing_batch=0)
    alone, _ = evaluate(loaded, data, [tuned.eval()], given)
    both, _ = evaluate(loaded, data, [pruner, tuned], given)
    assert alone["rows"] == both["rows"]
    with pytest.raises(UserError, match="Two pruners hold the same kind of tokens, visual, visual"):
        evaluate(loaded, data, [tuned, tuned], settings())


def test_every_baseline_is_measured(loaded, data):
    methods = ["random", "centre-crop", "cls-attention", "evit", "a-vit", "tome", "pitome", "low-res"]
    results, _ = evaluate(loaded, data, [], settings(methods=methods))
    assert set(by_method(results, 0.5)) == set(methods)
    assert all(row["n_images"] == 10 for row in results["rows"])
    dense = by_method(results, 1.0)["dense"]
    for row in by_method(results, 0.5).values():
        assert row["gmacs"] < dense["gmacs"]
        assert row["images_per_second"] > 0


def test_intervals_neighbours_and_classes(loaded, data, pruner):
    results, _ = evaluate(loaded, data, [pruner], settings(methods=["random"]))
    dense = by_method(results, 1.0)["dense"]
    assert dense["index_overlap_at_10"] == 1
    assert dense["top1_change_interval"] == [0, 0]
    assert dense["top5"] == 100
    for row in results["rows"]:
        low, high = row["top1_interval"]
        assert low <= row["top1"] <= high
        low, high = row["top1_change_interval"]
        assert low <= row["top1"] - row["top1_dense"] <= high
        assert row["mean_per_class"] == pytest.approx(row["top1"])  # five images of each class
        assert 0 <= row["index_overlap_at_10"] <= 1
        assert 0 <= row["knn_top1"] <= 100
        assert "recall_at_1" not in row


def two_stages(loaded):
    base = BaseModel.of(loaded.tower, "tiny")
    return Pruner({1: Predictor.for_tower(loaded.tower)}, base, Schedule({1: 0.8, 3: 0.5})).eval()


@pytest.mark.parametrize("keep", [1.0, 0.1])
def test_rates_go_by_the_fitted_shape_whatever_the_pruner_keeps_at_the_moment(loaded, data, keep):
    pruner = two_stages(loaded)
    pruner.keep = keep
    given = settings(methods=["centre-crop"], keep=[0.25, 1.0, 0.5, 0.25], timing_batch=0)
    results, _ = evaluate(loaded, data, [pruner], given)
    assert [(row["method"], row["keep_rate"]) for row in results["rows"]] == [
        ("dense", 1.0),
        ("patchranking", 0.5),
        ("centre-crop", 0.5),
        ("patchranking", 0.25),
        ("centre-crop", 0.25),
    ]
    for row in results["rows"][1:]:
        assert row["schedule"] == pytest.approx(
            {0.5: {"1": 0.8, "3": 0.5}, 0.25: {"1": 0.64, "3": 0.25}}[row["keep_rate"]]
        )
    assert pruner.keep == keep


def test_by_default_a_model_without_a_class_token_is_spared_what_needs_one(loaded, data, monkeypatch):
    monkeypatch.setattr(loaded.tower, "has_class_token", False)
    few = {"keep": [0.5], "golden_images": 1, "timing_batch": 0, "examples": 0, "worst": 0}
    results, _ = evaluate(loaded, data, [], EvaluationSettings(**few))
    assert [row["method"] for row in results["rows"]] == ["dense", "random", "tome", "golden"]
    with pytest.raises(UserError, match="class token"):
        evaluate(loaded, data, [], EvaluationSettings(methods=["evit"], **few))


def test_rates_at_shares_of_the_dense_macs(loaded, data, pruner):
    given = settings(methods=["random"], keep=[0.9], macs=[0.75, 0.9], timing_batch=0)
    results, _ = evaluate(loaded, data, [pruner], given)
    rates = [keep_at_macs(loaded.tower, pruner.fitted, share) for share in (0.9, 0.75)]
    assert [row["keep_rate"] for row in results["rows"]] == [1.0, rates[0], rates[0], rates[1], rates[1]]


def test_a_schedule_given_goes_before_the_pruners_and_block_3_is_the_default(loaded, data):
    given = settings(methods=["random"], keep=[0.5], timing_batch=0)

    def schedules(*arguments):
        results, _ = evaluate(loaded, data, *arguments)
        return [row["schedule"] for row in results["rows"][1:]]

    assert schedules([], given) == [{"3": 0.5}]
    power = math.log(0.5) / math.log(0.6)
    assert schedules([], given, Schedule({0: 0.8, 2: 0.6})) == [pytest.approx({"0": 0.8**power, "2": 0.5})]
    assert schedules([two_stages(loaded)], given, Schedule({1: 0.6})) == [{"1": 0.5}, {"1": 0.5}]
    with pytest.raises(UserError, match="cannot prune before block 9"):
        evaluate(loaded, data, [], given, Schedule({9: 0.5}))


def test_the_oracles_images_and_the_indexed_ones_are_drawn_by_seed(loaded, data, monkeypatch):
    seen, seed = {}, 7

    def spied(model, data, encodings, images, indexed, batch_size, progress, journal):
        seen.update(encodings=encodings, images=images, indexed=indexed, batch_size=batch_size)
        return measure(model, data, encodings, images, indexed, batch_size, None)

    monkeypatch.setattr("patchranking.evaluation.evaluate.measure", spied)
    given = settings(methods=["random", "golden"], seed=seed, golden_images=5, index_images=8, timing_batch=0)
    results, shown = evaluate(loaded, data, [], given)
    order = np.random.default_rng(seed).permutation(11).tolist()
    assert seen["images"] is None
    assert seen["indexed"] == {*order[:8]}
    assert seen["batch_size"] == 3
    images = {entry.method.name: encoding.images for entry, encoding in seen["encodings"].items()}
    assert images == {"random": None, "golden": frozenset(order[:5])}
    readable = [image for image in sorted(order[:5]) if "broken" not in data.keys[image]]
    assert by_method(results, 0.5)["golden"]["n_images"] == len(readable)
    assert [item.image.tobytes() for item in shown] == [data.image(image).tobytes() for image in readable[:2]]
    assert [item.caption for item in shown] == [data.class_names[data.labels[image]] for image in readable[:2]]
    assert {row["seed"] for row in results["rows"]} == {seed}


def test_random_patches_are_drawn_by_seed(loaded, data):
    def random_row(seed):
        results, _ = evaluate(loaded, data, [], settings(methods=["random"], seed=seed, timing_batch=0))
        return by_method(results, 0.5)["random"]["feature_cosine"]

    assert random_row(1) == random_row(1) != random_row(2)


def test_without_the_oracle_the_first_readable_images_are_shown_with_what_untuned_methods_choose(loaded, data):
    pruner = two_stages(loaded)
    tuned = two_stages(loaded).tuned_by(Prompts("visual", 16, 32, num_tokens=2)).eval()
    given = settings(methods=["random", "cls-attention"], keep=[0.5], timing_batch=0, examples=3)
    _, shown = evaluate(loaded, data, [tuned, pruner], given)
    readable = [image for image, key in enumerate(data.keys) if "broken" not in key][:3]
    assert [item.image.tobytes() for item in shown] == [data.image(image).tobytes() for image in readable]
    pixels = torch.stack([loaded.preprocess(data.image(image)) for image in readable])
    with torch.inference_mode():
        order = pruner(loaded.tower.embed(pixels, 1)).argsort(dim=1, descending=True, stable=True)
    for item, own in zip(shown, order, strict=True):
        assert item.importance is None
        assert list(item.views) == ["patchranking", "cls-attention"]
        passed = item.views["patchranking"][0.5].passed.flatten()
        assert {*np.flatnonzero(passed)} == {*own[:13].tolist()}
        assert {*np.flatnonzero(passed == 2)} == {*own[:8].tolist()}


def test_the_worst_are_those_of_all_images_that_the_first_pruner_changes_most(loaded, data):
    given = settings(methods=["cls-attention", "golden"], keep=[0.9, 0.6], timing_batch=0, examples=10, worst=3)
    pruner = two_stages(loaded)
    results, shown = evaluate(loaded, data, [pruner], given)
    assert [item.worst for item in shown] == [True] * 3 + [False] * (len(shown) - 3)
    assert len({item.key for item in shown}) == len(shown)
    rate = results["recommendation"]["keep_rate"] or 0.6
    keys = [key for key in data.keys if "broken" not in key]
    _, every = evaluate(loaded, data, [pruner], settings(keep=[rate], timing_batch=0, methods=[], examples=10))
    views = {item.key: (item.views["patchranking"][rate], item.prediction) for item in every}
    assert {*views} == {*keys}
    order = sorted(keys, key=lambda key: (views[key][0].prediction == views[key][1], views[key][0].cosine))
    assert [item.key for item in shown[:3]] == order[:3]


def test_what_is_left_out_and_the_keep_rate_to_use_are_in_the_results(loaded, data):
    data.left_out, data.notes = {f"{number}.txt": "no picture" for number in range(12)}, ["a note"]
    results, _ = evaluate(loaded, data, [two_stages(loaded)], settings(methods=[], timing_batch=0))
    assert results["images"]["left_out"] == results["left_out"]["count"] == 12
    assert results["left_out"]["reasons"] == {"no picture": 12}
    assert list(results["left_out"]["first"]) == [f"{number}.txt" for number in range(10)]
    assert results["notes"] == ["a note"]
    assert results["recommendation"]["method"] == "patchranking"
    assert "10 images are too few" in results["recommendation"]["rule"]


def test_another_models_pruner_is_refused(loaded, data, pruner):
    loaded.tower.blocks[-1].mlp.c_fc.weight.normal_()
    with pytest.raises(UserError, match="other weights"):
        evaluate(loaded, data, [pruner], settings())


def test_the_environment_and_the_type_of_the_weights_are_told(loaded, data):
    results, _ = evaluate(loaded, data, [], settings(methods=[], timing_batch=0))
    assert results["environment"]["dtype"] == "float32"
    assert results["environment"]["threads"] == torch.get_num_threads()
    assert results["environment"]["torch"] == torch.__version__


def test_the_defaults_are_those_of_the_reference_tables():
    given = EvaluationSettings()
    assert given.methods == ["random", "cls-attention", "evit", "tome", "golden"]
    assert given.keep == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert (given.golden_images, given.index_images, given.batch_size) == (100, 10_000, 32)
    assert (given.timing_batch, given.examples, given.worst, given.seed) == (16, 8, 4, 0)


def test_captions_are_retrieved_by_pruned_features(loaded, pruner, data, tmp_path):
    lines = ["image\tcaption"]
    readable = [key for key in data.keys if "broken" not in key]
    for number, key in enumerate(readable):
        lines += [f"toy/{key}\t{'x' * (3 * number + 1)}", f"toy/{key}\t{'y' * (3 * number + 2)}"]
    (tmp_path / "captions.tsv").write_text("\n".join([*lines, "toy/red/broken.png\tnothing"]))
    captioned = load_data(str(tmp_path / "captions.tsv"))
    results, _ = evaluate(loaded, captioned, [pruner], settings(methods=[]))
    texts = [caption for captions in captioned.captions for caption in captions if caption != "nothing"]
    pixels = torch.stack([loaded.preprocess(captioned.image(index)) for index in range(10)])
    pruner.keep = 0.5
    with torch.inference_mode(), pruner.attached(loaded.tower):
        features = F.normalize(loaded.tower(pixels), dim=-1)
    best = (F.normalize(loaded.text(texts), dim=-1) @ features.T).argmax(1)
    row = by_method(results, 0.5)["patchranking"]
    assert row["recall_at_1"] == pytest.approx(100 * best.eq(torch.arange(20) // 2).float().mean().item())
    assert row["recall_at_1"] <= row["recall_at_5"] <= row["recall_at_10"] == 100
    assert row["text_recall_at_1"] <= row["text_recall_at_5"] <= row["text_recall_at_10"]
    assert row["top1"] is None
    assert row["top1_interval"] is None
    assert row["index_overlap_at_10"] is not None
    assert row["knn_top1"] is None


def test_a_fallback_costs_the_mean_over_the_images(loaded, data, pruner, tmp_path):
    pruner.doubt, tower = Doubt(loaded.tower.feature_size), loaded.tower
    pruner.doubt.weight.copy_(torch.randn_like(pruner.doubt.weight))
    pruner.doubt.weight[:5] = torch.tensor([-2.0, 0, 0, 0, 0])
    pixels = torch.stack([loaded.preprocess(data.image(i)) for i in range(len(data)) if "broken" not in data.keys[i]])
    errors = pruner.at(0.5).encode(tower, pixels).errors
    bound = errors.sort().values[6:8].mean().item()
    fallbacks = [100.0, bound, 0.0]
    own = settings(methods=["random"], keep=[0.5], fallback=fallbacks, timing_batch=1)
    results, _ = evaluate(loaded, data, [pruner], own, progress=tmp_path / "progress")
    rows = by_method(results, 0.5)
    never, some, always = (rows[f"fallback {error:g}"] for error in fallbacks)
    assert [row["ran_densely"] for row in (never, some, always)] == [0, 0.3, 1]
    assert [row["fallback"] for row in (never, some, always)] == fallbacks
    plain, dense = rows["patchranking"], results["rows"][0]
    rest = count_macs(lambda tokens: tower.pool(tower.run(tokens, 3)), tower.embed(pixels[:1], 3)) / 1e9
    for row, share in ((never, 0), (some, 0.3), (always, 1)):
        assert row["gmacs"] == pytest.approx(plain["gmacs"] + share * rest, rel=1e-4)
        assert row["macs_share"] == pytest.approx(row["gmacs"] / dense["gmacs"])
        assert row["images_per_second"] is None
        assert "fallback" not in plain
    found, bare = pruner.at(0.5).encode(tower, pixels, bound).features, tower(pixels)
    assert some["feature_cosine"] == pytest.approx(F.cosine_similarity(found, bare).mean().item(), abs=1e-6)
    assert never["feature_cosine"] == plain["feature_cosine"] < some["feature_cosine"] < always["feature_cosine"] == 1
    assert (never["top1"], always["top1"]) == (plain["top1"], dense["top1"])
    (again,) = (
        row
        for row in evaluate(loaded, data, [pruner], own, None, tmp_path / "progress")[0]["rows"]
        if row["method"] == some["method"]
    )
    assert again["ran_densely"] == 0.3  # from the journal


def test_a_fallback_needs_a_fitted_pruner_that_estimates(loaded, data, pruner):
    with pytest.raises(UserError, match="Only a fitted pruner estimates its errors"):
        evaluate(loaded, data, [], settings(fallback=[0.1]))
    with pytest.raises(UserError, match="no estimate of its errors"):
        evaluate(loaded, data, [pruner], settings(fallback=[0.1]))
    with pytest.raises(UserError, match="estimated 1 - cosine above which"):
        settings(fallback=[-1.0])
