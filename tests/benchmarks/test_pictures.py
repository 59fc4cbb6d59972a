from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pictures import MEASURES, SCHEMA, Group, Setting, grouped, table_of
from torch.nn import functional as F

from patchranking.data import load_data
from patchranking.methods.tally import DENSE, Tally


@pytest.fixture
def measured(loaded):
    """A model, data with captions, what was measured on all images and, by an oracle, on two, and their settings."""
    data = load_data("demo:test", 30)
    data.captions = [
        [f"word {index} {7 * index}", f"other {index} {5 * index}"][: 1 + index % 2] for index in range(30)
    ]
    tally, full = Tally(data.labels, frozenset(range(30))), loaded.text([texts[0] for texts in data.captions])
    classes = F.normalize(torch.randn(len(data.class_names), 24), dim=-1)
    features = {key: full + 0.1 * torch.randn(30, 24) for key in "ab"}
    images = [index for index in range(30) if index != 5]
    tally.add(DENSE, images, full[images], full[images], classes)
    for key, own in features.items():
        tally.add(key, images, own[images], full[images], classes)
    tally.add("oracle", [2, 7], full[[2, 7]], full[[2, 7]], classes)
    settings = {
        DENSE: Setting(DENSE, None, 0, 1.0),
        "a": Setting("patchranking", "out", 0, 0.7),
        "b": Setting("patchranking", "out", 1, 0.7),
        "oracle": Setting("golden", None, 0, 0.7),
    }
    return loaded, data, tally, settings, full, features


def test_a_row_holds_one_picture_under_one_encoding(measured):
    loaded, data, tally, settings, full, features = measured
    table = table_of(loaded, data, "some", tally, settings)
    assert table.schema == SCHEMA
    assert len(table) == 3 * 29 + 2
    rows = {(row["key"], row["method"], row["fit"]): row for row in table.to_pylist()}
    own, key = F.normalize(features["b"], dim=-1), data.keys[3]
    row, index = rows[key, "patchranking", 1], F.normalize(full, dim=-1)
    assert (row["dataset"], row["domain"], row["macs"]) == ("some", "out", pytest.approx(0.7))
    assert row["feature_cosine"] == pytest.approx(float(own[3] @ index[3]), abs=1e-5)
    assert row["top1"] == (tally.values("b", "top1")[3] == 100)
    others = [image for image in range(30) if image not in (3, 5)]
    first, second = (set(sorted(others, key=lambda i: -float(q[3] @ index[i]))[:10]) for q in (own, index))
    assert row["overlap_at_10"] == pytest.approx(len(first & second) / 10)
    assert rows[data.keys[2], "golden", 0]["overlap_at_10"] is None
    assert rows[data.keys[2], "golden", 0]["feature_cosine"] == pytest.approx(1, abs=1e-5)


def test_recall_of_a_picture_is_the_share_of_its_captions_that_find_it(measured):
    loaded, data, tally, settings, _, features = measured
    rows = {row["key"]: row for row in table_of(loaded, data, "s", tally, {"a": settings["a"]}).to_pylist()}
    images = [index for index in range(30) if index != 5]
    own = F.normalize(features["a"][images], dim=-1)
    texts = [(place, caption) for place, index in enumerate(images) for caption in data.captions[index]]
    found = F.normalize(loaded.text([caption for _, caption in texts]).float(), dim=-1) @ own.T
    assert {row["recall_at_1"] for row in rows.values()} == {0, 0.5, 1}
    for place, index in enumerate(images):
        hits = [bool(found[row].argmax() == place) for row, (owner, _) in enumerate(texts) if owner == place]
        assert rows[data.keys[index]]["recall_at_1"] == np.mean(hits)
        assert rows[data.keys[index]]["text_recall_at_1"] == (texts[int(found[:, place].argmax())][0] == place)


def test_fits_stand_side_by_side_by_picture(measured):
    loaded, data, tally, settings, *_ = measured
    groups = grouped(table_of(loaded, data, "some", tally, settings))
    own = groups[Group("some", "patchranking", "out", 0.7)]
    assert own.fits == [0, 1]
    assert own.keys == [key for index, key in enumerate(data.keys) if index != 5]
    assert list(own.values) == list(MEASURES)
    hits = [[tally.values(key, "top1")[data.keys.index(picture)] / 100 for picture in own.keys] for key in "ab"]
    assert own.values["top1"].tolist() == hits
    golden = groups[Group("some", "golden", None, 0.7)]
    assert list(golden.values) == ["top1", "feature_cosine"]
    some = own.of(golden.keys)
    assert some.values["feature_cosine"].tolist() == own.values["feature_cosine"][:, [2, 6]].tolist()


def test_a_picture_takes_few_bytes(measured):
    loaded, data, tally, settings, *_ = measured
    table = table_of(loaded, data, "some", tally, dict.fromkeys(("a", "b", DENSE), settings["a"]))
    many, file = table.take(np.random.default_rng(0).integers(0, len(table), 50_000)), io.BytesIO()
    pq.write_table(many, file, compression="zstd")
    assert file.tell() < 12 * len(many)
