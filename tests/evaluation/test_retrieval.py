from __future__ import annotations

import torch
from torch.nn import functional as F

from patchranking.evaluation import retrieval
from patchranking.evaluation.retrieval import found, recall


def test_recall_equals_the_loop_both_ways(monkeypatch):
    monkeypatch.setattr(retrieval, "_ROWS", 4)
    images, owner = F.normalize(torch.randn(6, 4), dim=-1), torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
    texts = F.normalize(images[owner] + 0.6 * torch.randn(10, 4), dim=-1)
    for k in (1, 2, 5, 99):
        to_image = [
            owner[t].item() in sorted(range(6), key=lambda i, t=t: -float(texts[t] @ images[i]))[:k] for t in range(10)
        ]
        to_text = [
            any(owner[t] == i for t in sorted(range(10), key=lambda t, i=i: -float(texts[t] @ images[i]))[:k])
            for i in range(6)
        ]
        shares = torch.tensor([10.0 * sum(to_image), 100 / 6 * sum(to_text)])
        torch.testing.assert_close(torch.tensor(recall(images, texts, owner, k)), shares)
        assert [hits.tolist() for hits in found(images, texts, owner, k)] == [to_image, to_text]
