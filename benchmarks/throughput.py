"""Dense and pruned ViT-B/16 of every library, timed in turn; random weights, since time does not depend on them.

python benchmarks/throughput.py --out benchmarks/results/throughput-vit_b16.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import nn

from patchranking.evaluation.environment import environment
from patchranking.evaluation.speed import BackendName, PrecisionName, SpeedSettings, measure_speed
from patchranking.files import write_json
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.towers import as_tower
from patchranking.towers.base_model import BaseModel


def main(
    out: Path = Path("benchmarks/results/throughput-vit_b16.json"),
    libraries: list[str] = ["open_clip", "transformers", "timm"],  # noqa: B006
    keep: list[float] = [0.7, 0.6, 0.5, 0.4],  # noqa: B006
    batches: list[int] = [1, 8, 32],  # noqa: B006
    backends: list[BackendName] = ["eager"],  # noqa: B006
    precisions: list[PrecisionName] = ["fp32"],  # noqa: B006
    repeats: int = 7,
    seconds: float = 20.0,
    device: str = "cpu",
) -> None:
    """Times them.

    Args:
        out: The JSON file.
        libraries: open_clip, transformers, timm.
        keep: Keep rates.
        batches: Images a batch.
        backends: eager, compile, or both.
        precisions: fp32, bf16, fp16.
        repeats: Rounds at least.
        seconds: At least so long for each batch size.
        device: cpu, cuda, ...
    """
    torch.manual_seed(0)
    settings = SpeedSettings(keep, batches, backends, precisions, repeats, seconds)
    rows: list[dict[str, Any]] = []
    for library in libraries:
        model = _vit_b16(library).eval().requires_grad_(False).to(device)
        tower = as_tower(model)
        predictor = Predictor(tower.width, tower.num_prefix_tokens, tower.num_patches)
        pruner = Pruner(predictor, BaseModel.of(tower, "ViT-B/16"), Schedule({3: 0.5})).eval().to(device)
        rows += measure_speed(model, pruner, f"{library} ViT-B/16", settings)
        write_json(out, {"environment": environment(tower.device), "rows": rows})


def _vit_b16(library: str) -> nn.Module:
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
    auto_cli(main, as_positional=False)
