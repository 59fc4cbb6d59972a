from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from differences import differences_of, rows_of
from pictures import Group, Measured

from patchranking.evaluation.bootstrap import mcnemar, paired_interval, stratified_interval
from patchranking.methods.tally import DENSE

RNG = np.random.default_rng(0)


def measured(rate, fits=1, images=40, **more):
    """Hits at a rate, and other measures as given, of so many fits."""
    hits = (RNG.random((fits, images)) < rate).astype(float)
    return Measured([f"{index}.png" for index in range(images)], list(range(fits)), {"top1": hits, **more})


@pytest.fixture
def groups():
    """Two data sets; patchranking fitted for both domains in three fits, random in three seeds, tome and the oracle."""
    found = {}
    for dataset, images in (("a/val", 40), ("b/val", 90)):
        cosine = {"feature_cosine": np.full((1, images), 0.9)}
        for macs in (0.8, 0.5):
            for domain, rate in (("in", 0.9), ("out", 0.7)):
                found[Group(dataset, "patchranking", domain, macs)] = measured(rate, 3, images)
            found[Group(dataset, "random", None, macs)] = measured(0.3, 3, images)
            found[Group(dataset, "tome", None, macs)] = measured(0.7, 1, images, **cosine)
        found[Group(dataset, DENSE, None, 1.0)] = measured(0.95, 1, images, feature_cosine=np.ones((1, images)))
        oracle = measured(1.0, 1, 5)
        found[Group(dataset, "golden", None, 0.8)] = Measured(["3.png", *oracle.keys[:4]], [0], oracle.values)
    return found


def test_a_row_has_the_means_of_the_fits_beside_the_dense_value_of_the_same_pictures(groups):
    rows = rows_of(groups, {group: {"macs_share": 0.123} for group in groups})
    assert [tuple(row[name] for name in Group._fields) for row in rows] == list(groups)
    for row, (group, found) in zip(rows, groups.items(), strict=True):
        hits, dense = 100 * found.values["top1"], groups[Group(group.dataset, DENSE, None, 1.0)].values["top1"]
        chosen = [int(key.removesuffix(".png")) for key in found.keys]
        assert row["top1_fits"] == pytest.approx([own.mean() for own in hits])
        assert row["top1"] == pytest.approx(np.mean(row["top1_fits"]))
        assert row["top1_dense"] == pytest.approx(100 * dense[0, chosen].mean())
        assert row["top1_change_interval"] == paired_interval(hits, 100 * dense[:, chosen])
        assert (row["macs_share"], row["n_images"], row["fits"]) == (0.123, len(found.keys), found.fits)
        assert "recall_at_1" not in row
    assert rows[2]["method"] == "random"
    alone = paired_interval(100 * groups[Group("a/val", "random", None, 0.8)].values["top1"][:1], [np.zeros(40)])
    assert rows[2]["top1_change_interval"] != alone


def test_a_difference_is_paired_by_picture_and_fit(groups):
    rows = {(row["dataset"], row["domain"], row["rival"], row["macs"]): row for row in differences_of(groups)}
    for (dataset, domain, rival, macs), row in rows.items():
        datasets = ["a/val", "b/val"] if dataset == "mean" else [dataset]
        pairs = [
            tuple(
                100 * groups[Group(name, *about)].values["top1"]
                for about in (("patchranking", domain, macs), (rival, None, 1.0 if rival == DENSE else macs))
            )
            for name in datasets
        ]
        assert row["measure"] == "top1"
        assert row["difference"] == pytest.approx(np.mean([ours.mean() - theirs.mean() for ours, theirs in pairs]))
        assert row["interval"] == stratified_interval(pairs)
        if dataset == "mean":
            assert (row["p"], row["datasets"]) == (None, ["a/val", "b/val"])
        else:
            ours, theirs = pairs[0]
            seeds = [theirs[fit if rival == "random" else 0] > 0 for fit in range(3)]
            assert row["p"] == [mcnemar(own > 0, other) for own, other in zip(ours, seeds, strict=True)]
    parts = ("a/val", "b/val", "mean"), ("in", "out"), (DENSE, "random", "tome"), (0.8, 0.5)
    assert set(rows) == set(product(*parts))


def test_pictures_are_paired_by_name_not_by_place():
    ours, back = measured(0.5), slice(None, None, -1)
    same = Measured(ours.keys[back], [0], {"top1": ours.values["top1"][:, back]})
    groups = {Group("a", "patchranking", "in", 0.8): ours, Group("a", "tome", None, 0.8): same}
    (row,) = differences_of(groups)
    assert (row["interval"], row["p"], row["verdict"]) == ([0, 0], [1], "level")


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [([0.9, 0.8], [0.2, 0.1], "ahead"), ([0.1, 0.2], [0.8, 0.9], "behind"), ([0.9, 0.1], [0.2, 0.8], "level")],
)
def test_ahead_and_behind_are_intervals_without_zero(ours, theirs, verdict):
    def made(values):
        return Measured([str(index) for index in range(20)], [0], {"feature_cosine": np.array([values * 10])})

    groups = {Group("a", "patchranking", "in", 0.8): made(ours), Group("a", "tome", None, 0.8): made(theirs)}
    (row,) = differences_of(groups)
    assert row["verdict"] == verdict
    assert row["p"] is None
    assert (row["interval"][0] > 0, row["interval"][1] < 0) == (verdict == "ahead", verdict == "behind")


def test_a_rival_that_is_fitted_too_is_compared_within_its_domain():
    found = {
        Group("a", method, domain, 0.8): measured(rate)
        for method, rates in (("patchranking", (0.9, 0.6)), ("trained", (0.3, 0.1)))
        for domain, rate in zip(("in", "out"), rates, strict=True)
    }
    for row in differences_of(found):
        ours, theirs = (found[Group("a", name, row["domain"], 0.8)] for name in ("patchranking", "trained"))
        expected = 100 * (ours.values["top1"].mean() - theirs.values["top1"].mean())
        assert row["difference"] == pytest.approx(expected)
