from __future__ import annotations

from patchranking.report.curves import error_map, learning_curve, schedule_chart


def row(arm, seed, share, knn):
    return {"arm": arm, "seed": seed, "share": share, "budget": 100 * share, "step": int(share), "knn": knn}


def test_a_curve_has_a_line_for_each_arm_and_a_band_over_seeds():
    rows = [row(arm, seed, share, 10 * share + seed) for arm in ("none", "auto") for seed in (0, 1) for share in (0, 1)]
    chart = learning_curve(rows, "knn", "budget")
    assert chart.startswith("<svg")
    assert "none" in chart
    assert "auto" in chart
    assert "k-NN accuracy (%)" in chart
    assert learning_curve([row("none", 0, 0, None)], "knn", "budget") == ""


def test_the_schedule_names_its_stages():
    stages = [{"start": 0.0, "patch_size": 16, "drop": 0.5}, {"start": 0.5, "patch_size": 8, "drop": 0.0}]
    chart = schedule_chart(stages, {"a": 0.2, "b": 1.3})
    assert "16 px" in chart
    assert "−50%" in chart
    assert "8 px" in chart


def test_a_map_marks_the_least_error_and_has_room_for_what_was_not_tried():
    rows = [
        {"share": 0.25, "patch_size": size, "drop": drop, "cost": 0.5, "error": error, "bias2": 0.0, "variance": 4.0}
        for size, drop, error in ((8, 0.0, 3.0), (8, 0.5, 1.5), (16, 0.0, 2.0))
    ]
    chart = error_map(rows, "error")
    assert "1.5 ★" in chart
    assert chart.count("★") == 1
    assert "Cost-adjusted error at 25%" in chart
    assert ">2<" in error_map(rows, "variance").replace(" ", "")
