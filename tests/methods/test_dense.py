from __future__ import annotations

import torch

from patchranking.methods.batch import Batch
from patchranking.methods.dense import Dense
from patchranking.pruning.schedule import Schedule


@torch.inference_mode()
def test_it_is_the_librarys_model_whatever_the_schedule(case):
    encoding = Dense().at(case.tower, Schedule({1: 0.75, 3: 0.5}), 0)
    assert encoding.schedule == Schedule({1: 1.0, 3: 1.0})
    features, keep_indices, _ = encoding.run(Batch(case.tower, case.pixels))
    assert torch.equal(features, case.encode(case.pixels))
    assert keep_indices is None
