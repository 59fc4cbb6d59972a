from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchranking.errors import UserError
from patchranking.pretrain.compression import Compression
from patchranking.pretrain.schedule import (
    CompressionSchedule,
    Stage,
    cosine_rate,
    momentum_at,
    monotone,
    power_rate,
    warmed_up,
)

SCHEDULE = CompressionSchedule(
    (Stage(0.0, Compression(16, 0.5)), Stage(0.25, Compression(8, 0.5)), Stage(0.5, Compression(8)))
)


def tokens(compression):
    return compression.kept(64)


@pytest.mark.parametrize(("share", "place"), [(0, 0), (0.249, 0), (0.25, 1), (0.4999, 1), (0.5, 2), (1.0, 2), (1.1, 2)])
def test_a_stage_holds_from_its_start(share, place):
    assert SCHEDULE.at(share) == SCHEDULE.stages[place].compression


def test_it_is_read_as_it_was_written(tmp_path):
    SCHEDULE.save(tmp_path / "schedule.yaml")
    text = (tmp_path / "schedule.yaml").read_text()
    assert text.startswith("# Compression over")
    assert "patch_size: 16" in text
    assert CompressionSchedule.load(tmp_path / "schedule.yaml") == SCHEDULE


def test_a_person_may_leave_drop_out(tmp_path):
    (tmp_path / "s.yaml").write_text("stages:\n- {start: 0, patch_size: 16}\n- {start: 0.5, patch_size: 8}\n")
    assert CompressionSchedule.load(tmp_path / "s.yaml").compressions == (Compression(16), Compression(8))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has to be a list 'stages'"),
        ("stages: []", "has to be a list 'stages'"),
        ("stages: [1]", "A stage has start"),
        ("stages: [{start: 0, patch_size: 8, keep: 1}]", "A stage has start"),
        ("stages: [{start: 0.5, patch_size: 8}]", "first starts at 0"),
        ("stages: [{start: 0, patch_size: 8}, {start: 0, patch_size: 4}]", "one after the other"),
        ("stages: [{start: 0, patch_size: 8}, {start: 1, patch_size: 4}]", "below 1"),
        ("stages: [{start: 0, patch_size: eight}]", "patch size is a whole number"),
        ("stages: [{start: 0, patch_size: 8, drop: 1}]", "share of the patches dropped"),
        ("stages: {", "no YAML"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, said):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        CompressionSchedule.load(tmp_path / "s.yaml")


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        CompressionSchedule.load(tmp_path / "s.yaml")


def test_compression_may_only_relax(vit_tower):
    SCHEDULE.check(vit_tower, tokens)
    tighter = CompressionSchedule((Stage(0.0, Compression(8)), Stage(0.5, Compression(16))))
    with pytest.raises(UserError, match="not monotone: from 50% of the budget, patches of 16 cost less"):
        tighter.check(vit_tower, tokens)
    with pytest.raises(UserError, match="does not fit"):
        CompressionSchedule.constant(Compression(6)).check(vit_tower, tokens)


@given(st.lists(st.tuples(st.sampled_from([8, 16, 32]), st.sampled_from([0.0, 0.5, 0.9])), min_size=1, max_size=6))
def test_made_monotone_it_passes_and_changes_only_what_tightens(drawn):
    given_ones = [Compression(*one) for one in drawn]
    found = monotone(given_ones, tokens)
    costs = [tokens(one) for one in found]
    assert costs == sorted(costs)
    for place, (before, after) in enumerate(zip(given_ones, found, strict=True)):
        assert tokens(after) == max(map(tokens, given_ones[: place + 1]))
        if tokens(before) == tokens(after):
            assert before == after


def test_equal_neighbours_are_one_stage():
    a, b = Compression(16), Compression(8)
    assert CompressionSchedule.of([a, a, b, b]).stages == (Stage(0.0, a), Stage(0.5, b))
    assert CompressionSchedule.two_phase(8, 16).stages == (Stage(0.0, a), Stage(0.75, b))
    assert CompressionSchedule.constant(a).at(0.9) == a


def test_rates_run_from_one_to_zero():
    for rate in (cosine_rate, power_rate):
        assert (rate(0), rate(1)) == (1, pytest.approx(0))
        assert warmed_up(0.05, 0.1, rate) == 0.5
        assert warmed_up(0.1, 0.1, rate) == 1
        assert warmed_up(0.0, 0.0, rate) == 1
        assert warmed_up(1.0, 0.1, rate) == pytest.approx(0)
    assert power_rate(0.5) == 0.75
    assert power_rate(0.5) > cosine_rate(0.5)
    assert momentum_at(0, 0.99) == pytest.approx(0.99)
    assert momentum_at(1, 0.99) == 1
    assert momentum_at(0.25, 0.9) == pytest.approx(1 - 0.1 * 0.5 * (1 + math.cos(math.pi / 4)))
