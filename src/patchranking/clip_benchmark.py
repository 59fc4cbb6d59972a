"""Pruned models in CLIP_benchmark: its own command line, with one more kind of model.

    python -m patchranking.clip_benchmark eval --model open_clip:ViT-B-16/openai --pretrained runs/fit@0.5 \
        --dataset cifar10 --output result.json

``--model`` is a MODEL argument of patchranking, ``--pretrained`` the folder of a pruner and, after ``@``, a keep rate;
``--pretrained cls-attention@0.5`` needs no fit, and ``--pretrained dense`` runs the model as it is. All other options,
and what is written, are CLIP_benchmark's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from patchranking.errors import UserError
from patchranking.extras import import_extra
from patchranking.methods.attach import attach, pruner_or_method
from patchranking.pruner import Pruner
from patchranking.pruning.select import check_keep_rate
from patchranking.towers.load import LoadedModel, load_model

__all__ = ["accuracy", "load_pruned", "main"]

KIND = "patchranking"


class _Encoders(nn.Module):
    """The two methods that CLIP_benchmark calls, for a model of any library."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.model = loaded.model
        self._loaded = loaded

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self._loaded.tower(pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        assert self._loaded.text is not None
        return self._loaded.text.encode(ids)


def load_pruned(
    model_name: str, pretrained: str, cache_dir: str | None = None, device: str | torch.device = "cpu"
) -> tuple[nn.Module, Callable[[Image.Image], Tensor], Callable[[list[str]], Tensor]]:
    """Loads a pruned model as CLIP_benchmark's loaders do.

    Args:
        model_name: A MODEL argument, e.g. ``open_clip:ViT-B-16/openai``.
        pretrained: ``FOLDER``, ``FOLDER@KEEP_RATE``, ``METHOD@KEEP_RATE`` or ``dense``.
        cache_dir: Unused; every loader takes it.
        device: Where to put it.

    Returns:
        The model with ``encode_image`` and ``encode_text``, the transform and the tokenizer.

    Raises:
        UserError: If the model has no text encoder, or the pruner is another model's, or has tuned text tokens, which
            CLIP_benchmark's prompts would bypass.
    """
    loaded = load_model(model_name, device)
    if loaded.text is None:
        raise UserError(f"CLIP_benchmark needs a text encoder, and '{model_name}' has none: choose a CLIP.")
    if pretrained != "dense":
        folder, _, keep = pretrained.rpartition("@") if "@" in pretrained else (pretrained, "", "")
        pruner = pruner_or_method(folder)
        if not isinstance(pruner, Pruner):
            attach(loaded.model, pruner.name, _rate(keep or "0.5"))
            return _Encoders(loaded).eval(), loaded.preprocess, loaded.text.tokenize
        if pruner.tuned in ("text", "both"):
            raise UserError(
                "CLIP_benchmark writes prompts of its own, and this pruner has tuned text tokens: tune visual ones."
            )
        if keep:
            pruner.keep = _rate(keep)
        pruner.attach(loaded.model)
    return _Encoders(loaded).eval(), loaded.preprocess, loaded.text.tokenize


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError as error:
        raise UserError(f"A keep rate goes after the @, such as runs/fit@0.5, not '{text}'.") from error
    return check_keep_rate(rate)


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[float]:
    """Shares of rows whose target is among the first k, in place of CLIP_benchmark 1.6's, which fails on numpy 2.4.

    Args:
        output: Logits ``(images, classes)``.
        target: Classes ``(images,)``.
        topk: Each k.
    """
    best = output.topk(max(topk), 1).indices.eq(target.unsqueeze(1))
    return [best[:, :k].any(1).float().mean().item() for k in topk]


def main() -> None:
    """Runs CLIP_benchmark's command line on pruned models."""
    try:
        import_extra("clip_benchmark.cli", "This needs CLIP_benchmark", "clip-benchmark")
    except UserError as error:
        raise SystemExit(f"patchranking: {error}") from error
    from clip_benchmark import cli, models
    from clip_benchmark.metrics import zeroshot_classification

    zeroshot_classification.accuracy = accuracy
    kinds: dict[str, Any] = models.TYPE2FUNC
    kinds[KIND] = load_pruned
    models.MODEL_TYPES.append(KIND)
    if sys.argv[1:2] == ["eval"] and not any(argument.startswith("--model_type") for argument in sys.argv):
        sys.argv += ["--model_type", KIND]
    try:
        cli.main()
    except UserError as error:
        raise SystemExit(f"patchranking: {error}") from error


if __name__ == "__main__":
    main()
