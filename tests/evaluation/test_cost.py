from __future__ import annotations

import time

import pytest
import torch

from patchranking.evaluation.cost import count_macs, images_per_second


def test_counting_restores_the_fast_path():
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError):
        count_macs(lambda _: 1 / 0, torch.zeros(1))
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_throughput_alternates_and_takes_the_median():
    calls = []

    def run(name, seconds):
        return lambda _: (calls.append(name), time.sleep(seconds))

    speed = images_per_second({"a": run("a", 0.002), "b": run("b", 0.02)}, torch.zeros(4, 1), repeats=3)
    assert calls == ["a", "b"] * 4
    assert speed["a"] > 2 * speed["b"]
    assert speed["b"] <= 4 / 0.02
