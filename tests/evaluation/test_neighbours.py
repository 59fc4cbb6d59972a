from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from patchranking.evaluation import neighbours
from patchranking.evaluation.neighbours import knn_top1, nearest, overlap


def test_nearest_equals_the_loop_and_never_finds_itself(monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", 3)
    queries, index = (F.normalize(torch.randn(8, 5), dim=-1) for _ in range(2))
    found, cosines = nearest(queries, index, 3)
    for row in range(8):
        others = {other: float(queries[row] @ index[other]) for other in range(8) if other != row}
        best = sorted(others, key=others.get, reverse=True)[:3]
        assert found[row].tolist() == best
        torch.testing.assert_close(cosines[row], torch.tensor([others[other] for other in best]))


def test_overlap_counts_common_neighbours_in_any_order():
    first, second = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[3, 9, 1], [6, 4, 5]])
    torch.testing.assert_close(overlap(first, second), torch.tensor([2 / 3, 1.0]))


def test_knn_votes_by_similarity():
    labels = torch.tensor([0, 1, 1, 0])
    neighbours = torch.tensor([[1, 2, 3], [0, 3, 2], [0, 3, 1], [1, 2, 0]])
    cosines = torch.tensor([[0.1, 0.1, 0.9], [0.9, 0.9, 0.9], [0.5, 0.5, 0.6], [0.5, 0.5, 0.9]])
    expected = []
    for row in range(4):
        votes = {0: 0.0, 1: 0.0}
        for neighbour, cosine in zip(neighbours[row].tolist(), cosines[row].tolist(), strict=True):
            votes[labels[neighbour].item()] += math.exp(cosine / 0.07)
        expected.append(float(max(votes, key=votes.get) == labels[row]))
    assert knn_top1(neighbours, cosines, labels).tolist() == expected == [1, 0, 1, 1]
