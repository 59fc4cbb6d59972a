from __future__ import annotations

import pretrained
import tables

SOONER = {"factor": 1.5, "interval": [1.2, 2.0]}


def rows(arm, **more):
    return [
        {"arm": arm, "seed": seed, "share": share, "step": 8 * share, "budget": 9, "learning_rate": 1e-3}
        | {"knn": 20 + 10 * share + seed, "linear_probe": 30.0, "n_images": 4, **more}
        for seed in (0, 2)
        for share in (0, 0.5, 1)
    ]


def test_orders_have_their_accuracies_and_what_they_save():
    headline = [{"arm": "prototype", "measure": "knn", "against": "step", **SOONER}]
    headline.append({**headline[0], "measure": "linear_probe", "factor": None, "interval": [0, 1]})
    better = [row | {"knn": row["knn"] + 3} for row in rows("prototype", data="some/train")]
    better = [row | {"knn": row["knn"] - 3 * (row["share"] == 0)} for row in better]
    results = {"rows": rows("uniform", data="some/train") + better, "headline": headline}
    text = tables.table("mae_curriculum-some", results)
    assert "**some/train**, 4 pictures, 2 seeds, 8 steps" in text
    assert "before the training, 21.0 and 30.0" in text
    assert "| `uniform` | 26.0 | 31.0 ± 1.0 | 30.0 | 30.0 ± 0.0 | – | – | – | – |" in text
    assert text.endswith(
        "| +3.0 (+3.0 ... +3.0) | +0.0 (+0.0 ... +0.0) | 1.50x (1.20 ... 2.00) | never (0.00 ... 1.00) |"
    )


def test_arms_are_compared_with_no_compression_and_with_two_phases():
    own = {"method": "moco", "dataset": "some"}
    about = {"method": "moco", "arm": "dynamic", "measure": "knn", "against": "seconds", **SOONER}
    headline = [{**about, "over": "base"}, {**about, "over": "two-phase", "factor": 1.1}]
    text = tables.table(
        "contrastive_budget-some", {"rows": rows("base", **own) + rows("dynamic", **own), "headline": headline}
    )
    assert "**moco, some**, 2 seeds, 9 passes" in text
    assert "| `dynamic` | 0.001 | 8 | 26.0 | 31.0 ± 1.0 | 30.0 | 30.0 ± 0.0 | – | 1.50x" in text
    assert text.endswith("| moco | k-NN | time | 1.10x (1.20 ... 2.00) |")


def test_the_least_error_of_a_stage_is_bold():
    errors = [
        {"share": share, "patch_size": patch, "drop": 0.0, "cost": 4 / patch, "bias2": 0.1, "bias2_interval": [0, 0.2]}
        | {"error": error}
        for share, patch, error in ((0, 4, 1.0), (0, 8, 0.6), (1, 4, 0.9), (1, 8, 1.2))
    ]
    settings = {"base_batches": 200, "batches": 50, "batch_size": 64}
    text = pretrained.gradients({"analysis": {"errors": errors, "gradients": settings}})
    assert "| 4 px, 0% dropped | 1.00 | 0.10 (0.00 ... 0.20) | 0.10 (0.00 ... 0.20) | 1.00 | **0.90** |" in text
    assert text.endswith("| **0.60** | 1.20 |")
