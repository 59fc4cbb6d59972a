"""Predictors: tiny networks that read early tokens and score patches (Phase II)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.pruning.attach import Reduced
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.towers import VisionTower

__all__ = ["NETWORKS", "NetworkName", "Predictor"]

NetworkName = Literal["mixer", "mlp", "transformer"]
NETWORKS: tuple[str, ...] = get_args(NetworkName)
_TOKEN_HIDDEN = 16
_HEADS = 4


class Predictor(nn.Module):
    """Scores patches from the tokens that enter the pruned block (paper, section 3.2 and Table 6).

    Tokens are reduced to few channels, a body lets them see one another, and each patch gets a score. Beyond the paper,
    each token also gets a correction: what the kept tokens take over from the dropped ones. It is zero until a
    distillation has learned it.

    Args:
        width: Channels of the tower's tokens.
        num_prefix_tokens: Tokens before the patches.
        num_patches: Patches of an image.
        network: The body: ``mixer`` (built for this number of patches), ``mlp`` or ``transformer`` (for any number).
        context: Whether the prefix tokens take part in the body; they never get a score.
        channels: Reduced channels, a multiple of 4.

    Raises:
        UserError: If there is no such network, or the channels are no multiple of 4, the transformer's heads.
    """

    def __init__(
        self,
        width: int,
        num_prefix_tokens: int,
        num_patches: int,
        network: str = "mixer",
        context: bool = True,
        channels: int = 32,
    ) -> None:
        super().__init__()
        if network not in _BODIES:
            raise UserError(f"Unknown network '{network}': choose from {', '.join(NETWORKS)}.")
        if channels % _HEADS:
            raise UserError(f"A predictor cannot have {channels} channels: choose a multiple of {_HEADS}.")
        self.config: dict[str, Any] = {
            "width": width,
            "num_prefix_tokens": num_prefix_tokens,
            "num_patches": num_patches,
            "network": network,
            "context": context,
            "channels": channels,
        }
        self.num_prefix_tokens = num_prefix_tokens
        self.num_context_tokens = num_prefix_tokens if context else 0
        self.num_patches = num_patches
        self.any_length = network != "mixer"
        self.reduce = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))
        self.body = _BODIES[network](channels, self.num_context_tokens, num_patches)
        self.score = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 1))
        self.correction = nn.Linear(channels, width)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    @classmethod
    def for_tower(cls, tower: VisionTower, network: str = "mixer", **options: Any) -> Self:
        """A new predictor with the sizes of a tower; ``options`` are the other arguments of the class."""
        return cls(tower.width, tower.num_prefix_tokens, tower.num_patches, network, **options)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores patches.

        Args:
            tokens: ``(batch, prefix + patches, width)``, in any precision.

        Returns:
            Importance ``(batch, patches)``, higher = keep, in the predictor's precision.

        Raises:
            UserError: If a Mixer gets another number of patches than it was built for.
        """
        return self._scores(self._read(tokens))

    def correct(self, tokens: Tensor, keep: float) -> tuple[Tensor, Tensor]:
        """Scores patches and corrects all tokens for the loss of those that will go.

        Args:
            tokens: ``(batch, prefix + patches, width)``, in any precision.
            keep: Share of the patches that will stay; the correction grows as it falls, and at 1 there is none.

        Returns:
            Importance ``(batch, patches)``, and the corrected tokens in their own precision.

        Raises:
            UserError: If a Mixer gets another number of patches than it was built for.
        """
        hidden = self._read(tokens)
        correction = (1 - keep) * self.correction(F.layer_norm(hidden, hidden.shape[-1:]))
        left_alone = self.num_prefix_tokens - self.num_context_tokens
        return self._scores(hidden), tokens + F.pad(correction, (0, 0, left_alone, 0)).to(tokens.dtype)

    def prune(self, tokens: Tensor, count: int, choose: Callable[[Tensor, int], Tensor] = top_patches) -> Reduced:
        """Drops the patches with the lowest scores and corrects the other tokens.

        Args:
            tokens: ``(batch, prefix + patches, width)``, in any precision.
            count: Patches to keep.
            choose: Maps scores and count to indices of patches, ``top_patches`` or ``best_first``.

        Returns:
            The tokens that stay, ``(batch, prefix + count, width)``, in the order of ``choose``, and their indices.

        Raises:
            UserError: If a Mixer gets another number of patches than it was built for.
        """
        scores, corrected = self.correct(tokens, count / (tokens.shape[1] - self.num_prefix_tokens))
        keep_indices = choose(scores, count)
        return Reduced(gather_tokens(corrected, keep_indices, self.num_prefix_tokens), keep_indices)

    def _read(self, tokens: Tensor) -> Tensor:
        patches = tokens.shape[1] - self.num_prefix_tokens
        if patches != self.num_patches and not self.any_length:
            raise UserError(
                f"This mixer was fitted to {self.num_patches} patches, and {patches} came: fit one for this image "
                "size, or a network that takes any number, mlp or transformer."
            )
        hidden: Tensor = self.body(
            self.reduce(tokens[:, self.num_prefix_tokens - self.num_context_tokens :].to(self.correction.weight.dtype))
        )
        return hidden

    def _scores(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self.score(hidden[:, self.num_context_tokens :]).squeeze(-1)
        return scores


class _MixerBody(nn.Module):
    """One MLP-Mixer block: token mixing, then channel mixing, both pre-norm and residual."""

    def __init__(self, channels: int, context: int, patches: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(channels)
        self.token_mixing = _mlp(context + patches, _TOKEN_HIDDEN)
        self.channel_norm = nn.LayerNorm(channels)
        self.channel_mixing = _mlp(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixing(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mixing(self.channel_norm(x))


class _MLPBody(nn.Module):
    """A channel MLP for every token by itself; the mean of the context tokens is added to every patch."""

    def __init__(self, channels: int, context: int, patches: int) -> None:
        super().__init__()
        self.context = context
        self.share = nn.Linear(channels, channels) if context else None
        self.norm = nn.LayerNorm(channels)
        self.mlp = _mlp(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.share is not None:
            x = x + self.share(x[:, : self.context].mean(1, keepdim=True))
        return x + self.mlp(self.norm(x))


class _TransformerBody(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, channels: int, context: int, patches: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = _mlp(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        heads = self.qkv(self.attention_norm(x)).view(batch, tokens, 3, _HEADS, channels // _HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
        x = x + self.out(attended)
        return x + self.mlp(self.norm(x))


def _mlp(size: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))


_BODIES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "mixer": _MixerBody,
    "mlp": _MLPBody,
    "transformer": _TransformerBody,
}
