from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from patchranking.evaluation import cost
from patchranking.evaluation.cost import count_macs, images_per_second, time_in_turn


class Clock:
    """A clock that only stands still or is moved, and encoders that move it and tell their name."""

    def __init__(self):
        self.now, self.calls = 1000.0, []

    def taking(self, name, *seconds):
        """An encoder that takes so many seconds at its first call, its second, ..., the last ones again and again."""
        left = list(seconds)

        def run(pixels):
            self.calls.append((name, len(pixels)))
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_products_and_convolutions_of_one_image_are_counted():
    layers = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.Flatten(), nn.Linear(20, 7))
    assert count_macs(layers, torch.zeros(6, 3, 8, 8)) == 4 * 5 * 3 * 16 + 20 * 7


def test_attention_is_counted_inside_fused_kernels_too():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    tokens = 5
    expected = 4 * tokens * 8 * 8 + 2 * tokens * tokens * 8
    assert count_macs(lambda x: attention(x, x, x, need_weights=False), torch.zeros(3, tokens, 8)) == expected


def test_counting_restores_the_fast_path():
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError):
        count_macs(lambda _: 1 / 0, torch.zeros(1))
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_throughput_alternates_leaves_the_first_round_out_and_takes_the_median(clock):
    runs = {"a": clock.taking("a", 9.0, 0.5, 8.0, 0.25), "b": clock.taking("b", 0.1, 2.0, 4.0, 100.0)}
    speed = images_per_second(runs, torch.zeros(4, 1), repeats=3)
    assert clock.calls == [("a", 4), ("b", 4)] * 4
    assert speed == pytest.approx({"a": 4 / 0.5, "b": 4 / 4.0})


def test_the_median_of_an_even_number_of_rounds_is_halfway(clock):
    speed = images_per_second({"a": clock.taking("a", 9.0, 1.0, 3.0)}, torch.zeros(6, 1), repeats=2)
    assert speed == pytest.approx({"a": 6 / 2.0})


def test_seven_rounds_are_the_default(clock):
    images_per_second({"a": clock.taking("a", 1.0)}, torch.zeros(1, 1))
    assert len(clock.calls) == 1 + 7


def test_time_goes_on_until_enough_has_gone(clock):
    runs = {"a": clock.taking("a", 1.0), "b": clock.taking("b", 2.0)}
    assert time_in_turn(runs, torch.zeros(1, 1), 2, seconds=14.0) == {"a": [1.0] * 4, "b": [2.0] * 4}
    assert time_in_turn(runs, torch.zeros(1, 1), 2, seconds=5.0) == {"a": [1.0] * 2, "b": [2.0] * 2}


def test_no_encoders_take_no_time(clock):
    assert images_per_second({}, torch.zeros(1, 1)) == {}
