"""Logits of images and texts on a pruned model whose tokens are learned."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from patchranking.data import ImageData
from patchranking.prompts.insert import prompted_features, with_visual_tokens
from patchranking.prompts.tokens import Prompts
from patchranking.pruner import Pruner
from patchranking.pruning.attach import run_reduced
from patchranking.towers import TextTower
from patchranking.towers.load import LoadedModel
from patchranking.towers.zero_shot import class_features

__all__ = ["Learner"]


class Learner(nn.Module):
    """Logits of images on the pruned model; only the tokens are its parameters.

    Args:
        prompts: The tokens.
        model: The model.
        text: Its text encoder.
        pruner: Fitted to the model.
        data: The images, with classes or captions.
    """

    def __init__(self, prompts: Prompts, model: LoadedModel, text: TextTower, pruner: Pruner, data: ImageData) -> None:
        super().__init__()
        self.prompts = prompts
        self._tower, self._text, self._scale = model.tower, text, model.logit_scale
        self.schedule, self._pruning = pruner.schedule, pruner.untuned.reductions()
        self._fixed: Tensor | None = None
        if prompts.context is None and data.captions is None:
            self._fixed = class_features(text, data.class_names, data.templates)

    def forward(self, pixels: Tensor, texts: list[str]) -> Tensor:
        """Logits ``(images, texts)``."""
        return self.logits(self.image_features(pixels), self.text_features(texts))

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scaled cosines of image features, of any length, to unit text features, ``(images, texts)``."""
        return self._scale * F.normalize(images.float(), dim=-1) @ texts.float().T

    def image_features(self, pixels: Tensor) -> Tensor:
        """Features of images ``(images, 3, height, width)`` on the pruned model, ``(images, features)``."""
        visual, steps = self.prompts.visual(), self._pruning
        if visual is not None:
            steps = with_visual_tokens(visual, steps, self._tower.num_prefix_tokens, self._tower.depth)
        tokens = self._tower.embed(pixels.to(self._tower.dtype))
        return self._tower.pool(run_reduced(self._tower, tokens, 0, steps).tokens)

    def text_features(self, texts: list[str]) -> Tensor:
        """Class texts are ``"name."``; where the text encoder is left alone, classes keep their templates."""
        if self._fixed is not None:
            return self._fixed
        context = self.prompts.context
        return self._text(texts) if context is None else prompted_features(self._text, context, texts)
