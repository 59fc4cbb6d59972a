from __future__ import annotations

from patchranking.pretrain.compression import Compression
from patchranking.pretrain.contrastive import ContrastiveSettings, make_objective
from patchranking.pretrain.schedule import Stage
from patchranking.pretrain.search import (
    best_compression,
    default_schedule,
    schedule_from_errors,
    two_phase_schedule,
)

SMALL = {"model_args": {"embed_dim": 32, "depth": 1, "num_heads": 2}, "head": 8}


def row(size, drop, cost, error):
    return {"patch_size": size, "drop": drop, "cost": cost, "error": error}


def stage(errors):
    return [row(4, 0.0, 1.0, errors[0]), row(4, 0.5, 0.5, errors[1]), row(8, 0.0, 0.2, errors[2])]


def test_the_least_error_wins_and_the_dearest_of_equals():
    assert best_compression(stage([3, 2, 1])) == Compression(8)
    assert best_compression(stage([1, 1, 1])) == Compression(4)


def test_the_schedule_follows_the_stages_and_only_relaxes():
    cost = {Compression(4): 1.0, Compression(4, 0.5): 0.5, Compression(8): 0.2}.__getitem__
    errors = {0.0: [3, 2, 1], 0.25: [3, 1, 2], 0.5: [3, 2, 1], 0.75: [3, 1, 2], 1.0: [3, 2, 1]}
    found = schedule_from_errors({share: stage(own) for share, own in errors.items()}, Compression(4), cost)
    assert found.stages == (
        Stage(0.0, Compression(8)),
        Stage(0.125, Compression(4, 0.5)),
        Stage(0.875, Compression(4)),
    )


def test_the_schedules_without_a_search():
    paper = make_objective(ContrastiveSettings(image_size=240, patch_size=16, **SMALL))
    assert [(s.start, str(s.compression)) for s in default_schedule(paper).stages] == [
        (0.0, "patches of 30, 50% dropped"),
        (0.25, "patches of 24, 50% dropped"),
        (0.5, "patches of 16, 50% dropped"),
        (0.75, "patches of 16"),
    ]
    small = make_objective(ContrastiveSettings(image_size=32, patch_size=4, **SMALL))
    assert two_phase_schedule(small).stages == (Stage(0.0, Compression(8)), Stage(0.75, Compression(4)))
    default_schedule(small).check(small.tower, small.passes)
