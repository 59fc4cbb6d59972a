r"""Dense and pruned ViT-B/16 of every library, timed in turn; random weights, since time does not depend on them.

    python benchmarks/throughput.py --macs 0.6 0.5 --repeats 5 --seconds 10 \
        --out benchmarks/results/throughput-vit_b16.json

A pruner has two forms: the default, and one with two stages that merges nothing, so that attention needs no mask. A run
that is killed goes on after the last finished library.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from common import Results, main
from torch import nn

from patchranking.evaluation.environment import environment
from patchranking.evaluation.speed import SpeedSettings, measure_speed
from patchranking.extras import declare_missing_operators
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.towers import as_tower

declare_missing_operators()

Library = Literal["open_clip", "transformers", "timm"]


def throughput(
    settings: SpeedSettings,
    out: Path = Path("benchmarks/results/throughput-vit_b16.json"),
    libraries: list[Library] = ["open_clip", "transformers", "timm"],  # noqa: B006
    device: str = "cpu",
) -> None:
    """Times the dense and the pruned model.

    Args:
        settings: What to time.
        out: The JSON file.
        libraries: open_clip, transformers, timm.
        device: cpu, cuda, ...
    """
    results = Results(out)

    def rows_of(library: Library) -> list[dict[str, Any]]:
        model = vit_b16(library).eval().requires_grad_(False).to(device)
        rows = []
        tower = as_tower(model)
        two = Schedule.spread([tower.depth // 4, tower.depth // 2], 0.5)
        forms = {"default": (Schedule.default(tower.depth, 0.5), True), "two stages, no merging": (two, False)}
        for form, (schedule, merges) in forms.items():
            pruner = Pruner.unfitted(tower, "ViT-B/16", schedule, merges)
            found = measure_speed(model, pruner, f"{library} ViT-B/16", settings)
            rows += [row | {"pruner": form} for row in found]
        return rows

    rows = [row for library in libraries for row in results.once(library, partial(rows_of, library))]
    results.write(environment(torch.device(device)), rows)


def vit_b16(library: Library) -> nn.Module:
    """A ViT-B/16 of CLIP with random weights."""
    if library == "open_clip":
        import open_clip

        return open_clip.create_model("ViT-B-16", pretrained=None).visual
    if library == "transformers":
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, patch_size=16, projection_dim=512))
    import timm

    return timm.create_model("vit_base_patch16_clip_224", pretrained=False, num_classes=512)


if __name__ == "__main__":
    main(throughput)
