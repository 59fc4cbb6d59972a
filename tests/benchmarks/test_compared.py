from __future__ import annotations

import compared
import pytest

pytest.importorskip("matplotlib")


def row(method, domain=None, macs=0.5, dataset="things/val", **changes):
    made = {"dataset": dataset, "method": method, "domain": domain, "macs": macs, "macs_share": macs, "n_images": 40}
    made |= {"oracle": False, "fits": [0], "keep_rate": 0.444, "schedule": {"3": 0.444}}
    values = {"top1": 80.0, "feature_cosine": 0.987, "overlap_at_10": 0.905} | changes
    for name in ("top1", "recall_at_1", "feature_cosine", "overlap_at_10"):
        if name in values:
            made |= {f"{name}_fits": [values[name]], f"{name}_dense": 95.0}
    return made | values


def difference(rival, dataset, measure="top1", domain="out", macs=0.5, **changes):
    made = {"dataset": dataset, "domain": domain, "rival": rival, "macs": macs, "measure": measure}
    return made | {"difference": 1.25, "interval": [0.25, 2.0], "verdict": "ahead"} | changes


@pytest.fixture
def results():
    """A comparison of two data sets, one with captions."""
    ours = [row("patchranking", domain, macs, fits=[0, 1]) for domain in ("in", "out") for macs in (0.5, 0.8)]
    ours[2] |= {"top1": 81.0, "top1_fits": [80.0, 82.0], "overlap_at_10_fits": [0.9, 0.91]}
    for own in ours:
        own |= {name: own[name] * 2 for name in own if name.endswith("_fits") and len(own[name]) == 1}
    rivals = [
        row(name, None, macs, macs_share=macs + off)
        for name, off in (("tome", 0.004), ("low-res", 0.03))
        for macs in (0.5, 0.8)
    ]
    oracle = [row("golden", None, macs, oracle=True, n_images=5, top1=90.0) for macs in (0.5, 0.8)]
    for own in oracle:
        del own["overlap_at_10"]
    dense = row("dense", None, 1.0, top1=95.0, keep_rate=1.0)
    captioned = [
        row(name, domain, macs, "scenes/test", recall_at_1=11.5)
        for name, domain, macs in (("dense", None, 1.0), ("patchranking", "in", 0.5))
    ]
    for own in captioned:
        del own["top1"]
    differences = [
        difference("tome", "things/val"),
        difference("tome", "things/val", "overlap_at_10", difference=-0.01, interval=[-0.025, 0.004], verdict="level"),
        difference("tome", "mean"),
        difference("tome", "things/val", domain="in", difference=-1.0, interval=[-2.0, -0.1], verdict="behind"),
    ]
    speed = {"method": "tome", "macs": 0.5, "batch": 8, "images_per_second": 30.0, "images_per_second_dense": 20.0}
    rows = [dense, *ours, *rivals, *oracle, *captioned]
    return {"split": "test", "rows": rows, "differences": differences, "speed": [speed]}


def test_methods_stand_over_shares_of_the_dense_macs_out_of_domain_first(results):
    things, scenes = compared.table(results, None).split("\n\n**")
    assert things.splitlines() == [
        "**things/val**, test half, 40 images, dense top-1 95.0 %, 2 fits: top-1 % / cosine / share of the 10 nearest "
        "neighbours that stay, in %",
        "",
        "| share of the dense MACs | 80% | 50% |",
        "|---|---|---|",
        "| patchranking, out-of-domain | 80.0 / 0.987 / 90 | 81.0 / 0.987 / 90 |",
        "| patchranking, in-domain | 80.0 / 0.987 / 90 | 80.0 / 0.987 / 90 |",
        "| tome | 80.0 / 0.987 / 90 | 80.0 / 0.987 / 90 |",
        "| low-res | 80.0 / 0.987 / 90 (at 83%) | 80.0 / 0.987 / 90 (at 53%) |",
        "| golden, oracle on 5 images, dense 95.0 | 90.0 / 0.987 / – | 90.0 / 0.987 / – |",
    ]
    words = "recall@1 of the picture of a caption"
    assert scenes.startswith(f"scenes/test**, test half, 40 images, dense {words} 11.5 %, 1 fit: {words} % / cosine")
    assert "| patchranking, in-domain | 11.5 / 0.987 / 90 |" in scenes


def test_the_half_is_named(results):
    results["split"] = "all"
    assert "**things/val**, all images, 40 images" in compared.table(results, None)


def test_without_classes_and_captions_there_is_no_accuracy(results):
    for own in results["rows"]:
        own.pop("top1", None)
    things = compared.table(results, None)
    assert things.startswith("**things/val**, test half, 40 images, 2 fits: ")
    assert "| tome | – / 0.987 / 90 |" in things
    assert "| golden, oracle on 5 images | – / 0.987 / – |" in things


def test_differences_say_who_is_ahead_the_mean_and_out_of_domain_first(results):
    tables = compared.table(results, "every").split("\n\n**")
    heads = [part.removeprefix("**").partition(":")[0] for part in tables]
    assert heads == [
        "Mean over the data sets**, patchranking out-of-domain",
        "things/val**, patchranking out-of-domain",
        "things/val**, patchranking in-domain",
    ]
    assert tables[1].splitlines()[2:] == [
        "| share of the dense MACs | 50% |",
        "|---|---|",
        "| top-1, points: minus tome | +1.2 (+0.2 ... +2.0) ahead |",
        "| same 10 neighbours, points: minus tome | -1.0 (-2.5 ... +0.4) level |",
    ]
    assert tables[2].endswith("| top-1, points: minus tome | -1.0 (-2.0 ... -0.1) behind |")


def test_differences_are_averaged_where_several_data_sets_have_the_measure(results):
    own = difference("tome", "scenes/test", "recall_at_1", difference=2.0)
    out, home = compared.table({**results, "differences": [*results["differences"], own]}, "differences").split(
        "\n\nPatchranking "
    )
    assert out.splitlines() == [
        "Patchranking out-of-domain: difference (95 % interval)",
        "",
        "| share of the dense MACs | 50% |",
        "|---|---|",
        "| top-1, points: minus tome | +1.2 (+0.2 ... +2.0) ahead |",
        "| recall@1, points: minus tome | +2.0 (+0.2 ... +2.0) ahead |",
        "| same 10 neighbours, points: minus tome | -1.0 (-2.5 ... +0.4) level |",
    ]
    assert "recall" not in home


def test_methods_are_averaged_over_the_data_sets_that_all_have(results):
    results["rows"] = [own for own in results["rows"] if own["dataset"] == "things/val"]
    for own in list(results["rows"]):
        if own["method"] in ("dense", "patchranking", "tome"):
            there = {k: v for k, v in own.items() if not k.startswith("top1")} | {"dataset": "scenes/test"}
            results["rows"].append(there | {"recall_at_1": 10.0, "recall_at_1_dense": 12.0, "feature_cosine": 0.977})
    assert compared.table(results, "mean").splitlines() == [
        "Mean over things/val, scenes/test, test half, 80 images: change of top-1 or recall@1 from the dense model's "
        "in points / cosine / share of the 10 nearest neighbours that stay, in %",
        "",
        "| share of the dense MACs | 80% | 50% |",
        "|---|---|---|",
        "| patchranking, out-of-domain | -8.5 / 0.982 / 90 | -8.0 / 0.982 / 90 |",
        "| patchranking, in-domain | -8.5 / 0.982 / 90 | -8.5 / 0.982 / 90 |",
        "| tome | -8.5 / 0.982 / 90 | -8.5 / 0.982 / 90 |",
    ]


def test_everything_is_in_all(results):
    parts = [compared.table(results, part) for part in (None, "mean", "differences", "every", "speed")]
    assert compared.table(results, "all") == "\n\n".join(parts)


def test_speed_is_a_multiple_of_the_dense_models(results):
    assert compared.table(results, "speed") == (
        "Images per second as a multiple of the dense model's, 8 images per batch\n\n"
        "| share of the dense MACs | 50% |\n|---|---|\n| tome | 1.50x |"
    )


def test_a_chart_of_each_domain_stands_over_the_counted_share(results, monkeypatch):
    drawn = []
    monkeypatch.setattr(compared, "accuracy_against_cost", lambda *some: drawn.append(some) or "<svg/>" * bool(some[0]))
    found = compared.charts(results, [("things", "top1"), ("scenes", "index_overlap_at_10")])
    assert found == dict.fromkeys(
        ("things-top1", "things-top1-in-domain", "scenes-index_overlap_at_10-in-domain"), "<svg/>"
    )
    rows, dataset, measure, cost = drawn[0]
    assert (dataset, measure, cost) == ("things/val, out-of-domain", "top1", "macs_share")
    assert {row["dataset"] for row in rows} == {dataset}
    assert [row["top1"] for row in rows if row["method"] == "patchranking"] == [80.0, 82.0, 80.0, 80.0]
    own = [row["index_overlap_at_10"] for row in rows if row["method"] == "patchranking"]
    assert own == [0.9, 0.91, 0.905, 0.905]
    assert {row["method"] for row in rows} == {"dense", "patchranking", "tome", "low-res"}
    low = next(row for row in rows if row["method"] == "low-res")
    assert (low["macs_share"], low["keep_rate"], low["index_overlap_at_10"]) == (0.53, 0.44, 0.905)


def test_a_chart_is_drawn(results):
    charts = compared.charts(results, [("things", "top1")])
    assert "Share of the dense MACs, counted (%)" in charts["things-top1"]
    assert "Zero-shot top-1 (%) · things/val, in-domain" in charts["things-top1-in-domain"]
