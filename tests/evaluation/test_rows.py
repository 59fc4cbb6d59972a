from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from patchranking.data import ImageData
from patchranking.evaluation import rows
from patchranking.evaluation.bootstrap import interval
from patchranking.evaluation.cost import count_macs
from patchranking.evaluation.rows import Entry, comparable, encoding_macs, noise, rows_of
from patchranking.methods import METHODS, Dense, PatchRanking
from patchranking.methods.golden import golden_importance
from patchranking.methods.tally import DENSE, Tally
from patchranking.predictor.networks import Predictor
from patchranking.prompts.insert import prompted_features
from patchranking.prompts.tokens import Prompts
from patchranking.pruner import Pruner
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers.identity import BaseModel

IMAGES = [11, 2, 7, 0, 13, 5, 4, 9, 3, 12, 6, 1, 8]  # 10 of 14 could not be read
INDEXED = sorted({*IMAGES} - {2})
ORACLE = (5, 0, 12, 3)
LABELS = [image * image % 6 for image in range(14)]
SEED = 3


class Listed(ImageData):
    """Fourteen images with one to three captions each, none of which is read."""

    def __init__(self):
        self.name, self.split, self.keys, self.labels = "toy", "val", [str(n) for n in range(14)], LABELS
        words = [f"word-{number}" for number in range(14)]
        self.captions = [[f"{words[n]} {words[m]}" for m in range(1 + n % 3)] for n in range(14)]

    def image(self, index):
        raise AssertionError


@pytest.fixture
def entries(loaded):
    tower, schedule = loaded.tower, Schedule({1: 0.75, 3: 0.5})
    base, predictors = BaseModel.of(tower, "tiny"), {1: Predictor.for_tower(tower)}
    tuned = Pruner(predictors, base, schedule, prompts=Prompts("both", 16, 32, num_tokens=2, coupled=False)).eval()
    methods = {
        "dense": Dense(),
        "tuned": PatchRanking(tuned),
        "own": PatchRanking(tuned.untuned),
        **{name: METHODS[name] for name in ("random", "tome", "golden")},
    }

    def entry(name, keep):
        encoding = methods[name].at(tower, schedule.at(keep), 0)
        return Entry(methods[name], keep, replace(encoding, images=frozenset(ORACLE)) if name == "golden" else encoding)

    order = [("dense", 1.0), ("tuned", 1.0), *((name, 0.5) for name in ("own", "tuned", "random", "tome", "golden"))]
    return [entry(name, keep) for name, keep in (*order, ("random", 0.25), ("golden", 0.25))]


@pytest.fixture
def tally(entries):
    """Features at random around those of the dense model, and shares of an object."""
    torch.manual_seed(4)
    tally, classes = Tally(LABELS, frozenset(INDEXED)), F.normalize(torch.randn(6, 24), dim=-1)
    full = torch.randn(14, 24) + 1.5 * classes[LABELS]
    for entry in entries:
        images = ORACLE if entry.method.oracle else IMAGES
        own = full if entry.key == DENSE else full + 1.3 * torch.randn(14, 24)
        tally.add(entry.key, images, own[list(images)], full[list(images)], classes, torch.rand(len(images)))
    return tally


@pytest.fixture
def found(loaded, tally, entries):
    return rows_of(loaded, Listed(), tally, entries, 0, SEED)


def test_rows_stand_in_the_order_of_their_entries_and_say_what_they_are(found, entries):
    names = ("method", "keep_rate", "tuned", "oracle", "n_images")
    assert [tuple(row[name] for name in names) for row in found] == [
        ("dense", 1.0, "none", False, 13),
        ("dense", 1.0, "both", False, 13),
        ("patchranking", 0.5, "none", False, 13),
        ("patchranking", 0.5, "both", False, 13),
        ("random", 0.5, "none", False, 13),
        ("tome", 0.5, "none", False, 13),
        ("golden", 0.5, "none", True, 4),
        ("random", 0.25, "none", False, 13),
        ("golden", 0.25, "none", True, 4),
    ]
    for row in found:
        assert [row[name] for name in ("model", "dataset", "split", "seed")] == ["tiny", "toy", "val", SEED]
    merged = entries[5].encoding.schedule
    half, quarter = {"1": 0.75, "3": 0.5}, {"1": 0.5625, "3": 0.25}
    schedules = [None, None, half, half, half, merged.to_dict(), half, quarter, quarter]
    assert [row["schedule"] for row in found] == schedules
    last = merged.kept(16)[max(merged.stages)]
    assert [row["kept_patches"] for row in found] == [16, 16, 8, 8, 8, last, 8, 4, 4]


def test_an_oracle_on_fewer_images_stands_apart_and_one_on_all_does_not():
    few = {"oracle": True, "n_images": 4}
    rows = [{"oracle": False, "n_images": 13}, few, {"oracle": True, "n_images": 13}, {"oracle": False, "n_images": 9}]
    assert comparable(rows) == ([rows[0], rows[2], rows[3]], [few])
    assert comparable([few]) == ([few], [])


def test_accuracies_are_percentages_with_intervals_paired_by_image(found, tally, entries):
    dense = tally.values(DENSE, "top1")
    for row, entry in zip(found, entries, strict=True):
        own = tally.values(entry.key, "top1")
        assert row["top1"] == pytest.approx(sum(own.values()) / len(own))
        assert row["top1_dense"] == pytest.approx(sum(dense[image] for image in own) / len(own))
        assert row["top1_interval"] == interval(list(own.values()), SEED)
        assert row["top1_change_interval"] == interval([own[image] - dense[image] for image in own], SEED)
        for name in ("top5", "feature_cosine", "object_patches_kept"):
            values = tally.values(entry.key, name)
            assert row[name] == pytest.approx(sum(values.values()) / len(own))
        classes = {LABELS[image] for image in own}
        means = [[own[image] for image in own if LABELS[image] == label] for label in classes]
        assert row["mean_per_class"] == pytest.approx(sum(sum(hits) / len(hits) for hits in means) / len(means))
    assert len({row["top1"] for row in found}) > 3


def test_neighbours_are_those_a_pruned_query_finds_in_the_dense_index(found, tally, entries):
    _, index = tally.features(DENSE)
    labels = [LABELS[image] for image in INDEXED]

    def ten(query, row):
        others = {other: float(query @ index[other]) for other in range(12) if other != row}
        return {other: others[other] for other in sorted(others, key=others.get, reverse=True)[:10]}

    for row, entry in zip(found, entries, strict=True):
        if entry.method.oracle:
            assert row["index_overlap_at_10"] is row["knn_top1"] is None
            continue
        shares, hits = [], []
        for number, query in enumerate(tally.features(entry.key)[1]):
            own, votes = ten(query, number), Counter()
            shares.append(len(own.keys() & ten(index[number], number).keys()) / 10)
            for other, cosine in own.items():
                votes[labels[other]] += math.exp(cosine / 0.07)
            hits.append(100 * (max(votes, key=votes.get) == labels[number]))
        assert row["index_overlap_at_10"] == pytest.approx(sum(shares) / 12)
        assert row["knn_top1"] == pytest.approx(sum(hits) / 12)
    assert 0.5 < found[4]["index_overlap_at_10"] < found[0]["index_overlap_at_10"] == 1


def test_few_images_have_fewer_neighbours_and_one_has_none(loaded, entries):
    for count, overlap in ((4, 1), (1, None), (0, None)):
        tally = Tally(None, frozenset(range(count)))
        features = torch.randn(5, 24)
        tally.add(DENSE, range(5), features, features)
        (row,) = rows_of(loaded, Listed(), tally, entries[:1], 0, 0)
        assert row["index_overlap_at_10"] == overlap
        assert row["knn_top1"] is None


@torch.inference_mode()
def test_recall_pairs_pictures_with_captions_under_the_tokens_of_the_method(loaded, found, tally, entries):
    captions = [(number, text) for number, image in enumerate(INDEXED) for text in Listed().captions[image]]
    texts = [text for _, text in captions]
    plain, context = loaded.text(texts), entries[1].method.prompts.context
    tuned = prompted_features(loaded.text, context, texts)
    assert not torch.allclose(plain, tuned, atol=1e-2)
    for row, entry in zip(found, entries, strict=True):
        if entry.method.oracle:
            assert not [name for name in row if "recall" in name]
            continue
        cosines = (tuned if entry.method.tuned == "both" else plain) @ tally.features(entry.key)[1].T
        for k in (1, 5, 10):
            to_image = [number in cosines[place].topk(k).indices for place, (number, _) in enumerate(captions)]
            best = [cosines[:, number].topk(k).indices.tolist() for number in range(12)]
            to_text = [any(captions[place][0] == number for place in best[number]) for number in range(12)]
            assert row[f"recall_at_{k}"] == pytest.approx(100 * sum(to_image) / len(captions))
            assert row[f"text_recall_at_{k}"] == pytest.approx(100 * sum(to_text) / 12)
    assert len({row["recall_at_5"] for row in found if "recall_at_5" in row}) > 1


def test_many_captions_are_encoded_in_parts(loaded, tally, entries, found, monkeypatch):
    monkeypatch.setattr(rows, "_TEXTS_PER_BATCH", 5)
    again = rows_of(loaded, Listed(), tally, entries, 0, SEED)
    assert [row.get("recall_at_5") for row in again] == pytest.approx([row.get("recall_at_5") for row in found])
    for missing in (replace(loaded, text=None), loaded):
        data = Listed()
        data.captions = None if missing is loaded else data.captions
        assert not [name for name in rows_of(missing, data, tally, entries[:1], 0, 0)[0] if "recall" in name]


def test_macs_hold_what_a_method_adds_but_not_what_an_oracle_looks_up(loaded, found, entries):
    tower, pixels = loaded.tower, noise(loaded.tower, 1, SEED)
    dense = count_macs(tower, pixels)
    for row, entry in zip(found, entries, strict=True):
        assert row["gmacs_dense"] == pytest.approx(dense / 1e9)
        assert row["macs_share"] == pytest.approx(row["gmacs"] / row["gmacs_dense"])
        tokens = 2 if entry.method.tuned == "both" else 0
        formula = analytic_macs(tower, 24, entry.encoding.schedule, tokens, inside=entry.method.name == "tome")
        assert row["gmacs_analytic"] == pytest.approx(formula / 1e9)
        if not entry.method.oracle:
            assert row["gmacs"] == pytest.approx(count_macs(entry.encoding, pixels) / 1e9)
    gmacs = [row["gmacs"] for row in found]
    assert gmacs[0] == pytest.approx(dense / 1e9)
    assert gmacs[6] == pytest.approx(gmacs[4])
    assert gmacs[8] == pytest.approx(gmacs[7])
    predictor = count_macs(entries[2].method.pruner, tower.embed(pixels, 1)) / 1e9
    assert gmacs[2] - gmacs[4] > 0.99 * predictor > 0


def test_counting_an_oracle_searches_beforehand(tower):
    encoding, searched = METHODS["golden"].at(tower, Schedule({3: 0.5}), 0), []

    def search(batch):
        searched.append(count_macs(lambda _: golden_importance(batch, 3), batch.pixels))

    pixels = noise(tower, 1)
    plain = encoding_macs(METHODS["random"].at(tower, Schedule({3: 0.5}), 0), pixels)
    assert encoding_macs(replace(encoding, search=search), pixels) == plain < searched[0]


def test_every_rate_is_timed_in_turn_with_the_dense_model_and_oracles_never(loaded, tally, entries, monkeypatch):
    rounds = []

    def timed(runs, pixels):
        assert pixels.shape == (3, 3, 32, 32)
        assert torch.equal(pixels, noise(loaded.tower, 3, SEED))
        assert all(run is entry.encoding for entry, run in runs.items())
        rounds.append(list(runs))
        return {entry: 100.0 * len(rounds) + number for number, entry in enumerate(runs)}

    monkeypatch.setattr(rows, "images_per_second", timed)
    found = rows_of(loaded, Listed(), tally, entries, 3, SEED)
    dense, tuned_dense, own, tuned, random, tome, _, last, _ = entries
    assert rounds == [[dense, tuned_dense], [dense, own, tuned, random, tome], [dense, last]]
    speeds = [(row["images_per_second"], row["images_per_second_dense"]) for row in found]
    half = [(201, 200), (202, 200), (203, 200), (204, 200), (None, 200)]
    assert speeds == [(100, 100), (101, 100), *half, (301, 300), (None, 300)]


def test_nothing_is_timed_without_a_batch(found):
    assert {(row["images_per_second"], row["images_per_second_dense"]) for row in found} == {(None, None)}


def test_an_oracle_brings_the_deployable_methods_at_its_rate_on_its_own_images(found, tally, entries):
    beside = {"dense": 0, "patchranking": 2, "random": 4, "tome": 5}
    for number, names in ((6, beside), (8, {"dense": 0, "random": 7})):
        same = found[number]["same_images"]
        assert list(same) == list(names)
        for name, place in names.items():
            for measure in ("top1", "feature_cosine"):
                values = tally.values(entries[place].key, measure)
                assert same[name][measure] == pytest.approx(sum(values[image] for image in ORACLE) / 4)
    assert [number for number, row in enumerate(found) if "same_images" in row] == [6, 8]


def test_noise_is_drawn_by_seed_at_the_size_and_the_type_of_the_model(case):
    tower = case.tower
    first, again, other = noise(tower, 2, 5), noise(tower, 2, 5), noise(tower, 2, 6)
    assert first.shape == (2, 3, *tower.image_size)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.8 < first.std() < 1.2
    tower.module.to(torch.bfloat16)
    assert noise(tower, 1).dtype == torch.bfloat16


def test_the_dense_model_has_one_key_and_every_other_entry_its_own(entries):
    assert [entry.key for entry in entries] == [DENSE, *entries[1:]]
