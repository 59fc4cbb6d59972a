"""Pruned models under torch.compile and torch.export: one graph, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from patchranking.prompts.tokens import Prompts
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule

LIBRARIES = [("open_clip", True), ("transformers-dinov3", False), ("timm-dinov2-registers", True)]
"""And whether patches merge."""


def pruner_of(tower, merges):
    """With visual tokens; merging at every stage, or one that scores and one that does not."""
    pruner = Pruner.unfitted(tower, "tiny", Schedule({0: 0.75, 1: 0.5}), merges)
    nn.init.normal_(pruner.predictor(0).correction.weight)
    return pruner.tuned_by(Prompts("visual", 8, tower.width, 2, depth=1))


class Whole(nn.Module):
    """A model as its library calls it, and the pruner that is attached to it."""

    def __init__(self, case, pruner):
        super().__init__()
        self.model, self.pruner, self.encode = case.model, pruner, case.encode

    def forward(self, pixels):
        return self.encode(pixels)


def near(found, expected):
    return (found - expected).norm() < 1e-5 * expected.norm()


@torch.inference_mode()
@pytest.mark.parametrize(("case", "merges"), LIBRARIES, indirect=["case"])
def test_a_keep_rate_is_one_graph_for_batches_of_any_size(case, merges):
    del case.tower.blocks[2:]
    counters.clear()
    made = CompileCounter()
    compiled = torch.compile(lambda pixels: case.encode(pixels), fullgraph=True, backend=made)
    with pruner_of(case.tower, merges).attached(case.model) as pruner:
        for keep, graphs in ((0.5, 1), (0.25, 2), (0.5, 2)):
            pruner.keep = keep
            for batch in (3, 5):
                pixels = torch.randn(batch, *case.pixels.shape[1:])
                torch._dynamo.mark_dynamic(pixels, 0)
                assert near(compiled(pixels), case.encode(pixels))
                assert made.frame_count == graphs
    assert not counters["graph_break"]


@torch.no_grad()
@pytest.mark.parametrize(("case", "merges"), LIBRARIES, indirect=["case"])
def test_an_exported_program_takes_batches_of_any_size(case, merges):
    del case.tower.blocks[2:]
    batch = ({0: torch.export.Dim("batch", min=1)},)
    with pruner_of(case.tower, merges).attached(case.model) as pruner:
        program = torch.export.export(Whole(case, pruner), (case.pixels,), dynamic_shapes=batch, strict=True)
        run = program.module()
        for size in (1, 5):
            pixels = torch.randn(size, *case.pixels.shape[1:])
            assert near(run(pixels), case.encode(pixels))
