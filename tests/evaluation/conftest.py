from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from patchranking.towers import TextTower
from patchranking.towers.load import LoadedModel


@pytest.fixture
def loaded(tower):
    """A small random model that takes 32 x 32 pixels as they are; of a text it sees nothing but the length."""

    def preprocess(image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1

    def tokenize(texts):
        return torch.tensor([[float(len(text))] for text in texts])

    text = TextTower(tokenize, lambda ids: F.normalize(torch.cos(torch.arange(24.0) * ids), dim=-1), 1)
    return LoadedModel("tiny", tower.module, tower, preprocess, text, 100.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
