from __future__ import annotations

from typing import Any

import pytest

from patchranking.evaluation.recommend import recommend, spotlight


def row(rate: float, low: float | None = None, high: float = 0.5, **changes: Any) -> dict[str, Any]:
    base = {"method": "patchranking", "tuned": "none", "oracle": False, "keep_rate": rate, "n_images": 300}
    measured = {"top1": 90.2, "top1_dense": 90.5, "feature_cosine": 0.99, "macs_share": rate / 2 + 0.4}
    return {**base, **measured, "top1_change_interval": None if low is None else [low, high], **changes}


def test_it_is_the_lowest_rate_whose_interval_stays_within_a_point() -> None:
    found = recommend([row(0.5, -1.1), row(0.9, -0.2), row(0.6, -1.0), row(0.7, -0.9)])
    assert (found.keep_rate, found.macs_share) == (0.6, 0.7)
    assert found.text == (
        "Use keep = 0.6 with patchranking: 70 % of the dense model's MACs, "
        "top-1 changes by -0.3 points (95 % interval -1.0 to +0.5)."
    )
    assert "does not reach below -1 point" in found.rule


def test_rows_of_older_results_have_their_share_from_the_macs() -> None:
    assert recommend([row(0.5, 0.0, macs_share=None, gmacs=3.0, gmacs_dense=4.0)]).macs_share == 0.75


def test_a_lower_rate_does_not_count_where_a_higher_one_fails() -> None:
    assert recommend([row(0.9, -0.5), row(0.7, -1.2), row(0.5, -0.1)]).keep_rate == 0.9


def test_the_lowest_rate_measured_says_so_and_no_change_reads_as_none() -> None:
    text = recommend([row(0.5, -0.5, top1=90.5)]).text
    assert "top-1 stays (95 %" in text
    assert text.endswith("Lower keep rates were not measured.")


def test_none_says_so() -> None:
    found = recommend([row(0.9, -1.2), row(0.5, -4.0)])
    assert (found.keep_rate, found.macs_share) == (None, None)
    assert found.text == "No keep rate to recommend: patchranking loses too much even at keep = 0.9."


@pytest.mark.parametrize(("low", "images", "why"), [(None, 300, "not measured"), (0.0, 299, "299 images are too few")])
def test_without_labels_or_with_few_images_the_cosine_decides(low: float | None, images: int, why: str) -> None:
    cosines = {0.9: 0.995, 0.7: 0.98, 0.5: 0.979}
    found = recommend([row(rate, low, n_images=images, feature_cosine=cosine) for rate, cosine in cosines.items()])
    assert found.keep_rate == 0.7
    assert "a mean cosine of 0.980 to the dense features" in found.text
    assert why in found.rule


def test_it_is_of_the_pruner_whatever_else_was_measured() -> None:
    rows = [row(0.3, 0.0, method="tome"), row(0.2, 0.0, oracle=True, method="golden"), row(0.9, 0.0)]
    assert recommend(rows).method == "patchranking"
    assert recommend(rows).keep_rate == 0.9
    assert recommend(rows[:2]).method == "tome"
    assert recommend([rows[1], row(1.0, 0.0, method="dense")]) is None
    assert recommend([row(0.6, feature_cosine=None)]) is None


def test_every_seed_of_a_rate_must_pass() -> None:
    assert recommend([row(0.6, -0.5), row(0.6, -1.5), row(0.8, -0.5)]).keep_rate == 0.8


def test_the_row_to_speak_of_is_the_recommended_or_the_nearest_to_sixty_percent() -> None:
    rows = [row(0.9, -0.1), row(0.7, -2.0), row(0.3, -3.0)]
    assert spotlight(rows) is rows[0]
    assert spotlight(rows[1:]) is rows[1]
    assert spotlight([row(0.6, oracle=True)]) is None
