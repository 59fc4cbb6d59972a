from __future__ import annotations

import torch

from patchranking.ranking.ranking import Ranking, places


def test_removal_goes_by_ascending_importance_and_ties_by_index():
    ranking = Ranking.from_importance(torch.tensor([[0.5, 0.1, 0.5, -1.0]]))
    assert ranking.removal_order.tolist() == [[3, 1, 0, 2]]


def test_an_order_and_its_importance_are_inverse():
    order = torch.stack([torch.randperm(9) for _ in range(5)])
    ranking = Ranking.from_order(order)
    assert torch.equal(Ranking.from_importance(ranking.importance).removal_order, order)
    assert torch.equal(ranking.importance.gather(1, order), ((torch.arange(9) + 0.5) / 9).expand(5, -1))
    assert places(order).dtype == torch.float32
