from __future__ import annotations

import torch

from patchranking.evaluation.memory import peak_activations


def test_peak_counts_what_lives_at_once():
    def run(pixels):
        first = pixels * 2  # 4 bytes a number
        second = first + 1
        del first
        third = second.view(-1)[None] * 3  # the view takes nothing
        return third.sum()

    numbers = 1000
    assert peak_activations(run, torch.zeros(numbers)) == 2 * 4 * numbers + 4
    assert peak_activations(lambda pixels: pixels.mul_(2), torch.zeros(numbers)) == 0


def test_the_peak_is_the_most_there_ever_was_not_the_last():
    def run(pixels):
        first = pixels * 2
        second = first + first
        del first
        return second.sum()

    assert peak_activations(run, torch.zeros(1000)) == 8000
