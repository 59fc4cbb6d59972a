"""Predictors: tiny networks that read early tokens and score patches (Phase II)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.pruning.attach import Reduced
from patchranking.pruning.merge import merge, nearest
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.pruning.stages import kept
from patchranking.towers import VisionTower

__all__ = ["NETWORKS", "NetworkName", "Predictor"]

NetworkName = Literal["mixer", "mlp", "transformer"]
NETWORKS: tuple[str, ...] = get_args(NetworkName)
_TOKEN_HIDDEN = 16
_HEADS = 4
_ANY_LENGTH: NetworkName = "mlp"
_MATCHING = 32
"""Channels in which patches are compared; see ``Predictor.match_by``."""
_RIDGE = 1e-4
"""Share of the mean square that is added, since the channels of a normed token depend on one another."""
_STEEPNESS, _SIMILAR = 10.0, 0.6
"""Before it is learned: how fast, and around which cosine, the share that merges rises from nothing to all."""


class Predictor(nn.Module):
    """Scores patches from the tokens that enter the pruned block (paper, section 3.2 and Table 6).

    Tokens are reduced to few channels, a body lets them see one another, and each patch gets a score. Beyond the paper,
    each token also gets a correction, what the kept tokens take over from the dropped ones; it is zero until a
    distillation has learned it. And each patch that goes has a fate: a share of it, between nothing and all, merges
    into the most similar patch that stays.

    Args:
        width: Channels of the tower's tokens.
        num_prefix_tokens: Tokens before the patches.
        num_patches: Patches of an image.
        network: The body: ``mixer`` (built for this number of patches), ``mlp`` or ``transformer`` (for any number).
        context: Whether the prefix tokens take part in the body; they never get a score.
        channels: Reduced channels, a multiple of 4.
        merges: Whether patches that go may merge; attention then has to count tokens by their sizes.

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
        merges: bool = False,
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
            "merges": merges,
        }
        self.num_prefix_tokens = num_prefix_tokens
        self.num_context_tokens = num_prefix_tokens if context else 0
        self.num_patches = num_patches
        self.any_length = network != "mixer"
        self.merges = merges
        self.reduce = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))
        self.body = _BODIES[network](channels, self.num_context_tokens, num_patches)
        self.score = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 1))
        self.correction = nn.Linear(channels + merges, width)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)
        if merges:
            self.match = nn.Linear(width, _MATCHING)
            self.fate = nn.Linear(channels + 1, 1)
            nn.init.zeros_(self.fate.weight)
            with torch.no_grad():
                self.fate.weight[0, -1], self.fate.bias[0] = _STEEPNESS, -_STEEPNESS * _SIMILAR

    @classmethod
    def for_tower(cls, tower: VisionTower, network: str = "mixer", **options: Any) -> Self:
        """A new predictor with the sizes of a tower; ``options`` are the other arguments of the class."""
        return cls(tower.width, tower.num_prefix_tokens, tower.num_patches, network, **options)

    @classmethod
    def for_stages(
        cls, tower: VisionTower, blocks: Sequence[int], network: str = "mixer", **options: Any
    ) -> dict[int, Self]:
        """New predictors for stages before some blocks; after a mixer, which takes one number of patches, MLPs."""
        first = cls.for_tower(tower, network, **options)
        again = network if first.any_length else _ANY_LENGTH
        return {blocks[0]: first} | {block: cls.for_tower(tower, again, **options) for block in blocks[1:]}

    @property
    def widest(self) -> int:
        """Channels of its widest multiplication, on the side that is not the tower's or the hidden one."""
        return max(self.correction.in_features, _MATCHING if self.merges else 0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores patches.

        Args:
            tokens: ``(batch, prefix + patches, width)``, in any precision.

        Returns:
            Importance ``(batch, patches)``, higher = keep, in the predictor's precision.

        Raises:
            UserError: If a Mixer gets another number of patches than it was built for.
        """
        return self._scores(self._read(tokens)[1])

    def prune(
        self,
        tokens: Tensor,
        count: int,
        choose: Callable[[Tensor, int], Tensor] = top_patches,
        sizes: Tensor | None = None,
        soften: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None,
    ) -> Reduced:
        """Drops or merges the patches with the lowest scores and corrects the tokens that stay.

        Args:
            tokens: ``(batch, prefix + patches, width)``, in any precision.
            count: Patches to keep.
            choose: Maps scores and count to indices of patches, ``top_patches`` or ``best_first``.
            sizes: How many patches each token stands for, ``(batch, prefix + patches)``; one each when omitted.
            soften: In place of ``choose``, maps scores and count to indices and the logarithms of their gates, by
                which sizes are multiplied, so that the choice can be learned.

        Returns:
            The tokens that stay, ``(batch, prefix + count, width)`` in their own precision, in the order of the choice;
            their indices; and their sizes where patches merge or gates are soft.

        Raises:
            UserError: If a Mixer gets another number of patches than it was built for.
        """
        normed, hidden = self._read(tokens)
        scores, prefix = self._scores(hidden), self.num_prefix_tokens
        stays, log_gates = (choose(scores, count), None) if soften is None else soften(scores, count)
        channels = F.layer_norm(hidden, hidden.shape[-1:])
        if self.merges:
            ones = torch.ones(tokens.shape[:2], dtype=scores.dtype, device=tokens.device)
            matching, similarity = nearest(self.match(normed[:, prefix:]), stays)
            going = gather_tokens(channels[:, self.num_context_tokens :], matching.sources, 0)
            share = self.fate(torch.cat([going, similarity.unsqueeze(-1)], -1)).squeeze(-1).sigmoid()
            reduced, sizes = merge(tokens, ones if sizes is None else sizes, matching, prefix, share)
        else:
            reduced, _, sizes = kept(tokens, stays, prefix, sizes)
        if log_gates is not None:
            gates = F.pad(log_gates, (prefix, 0)).exp()
            sizes = gates if sizes is None else sizes * gates
        correction = self._correction(gather_tokens(channels, stays, self.num_context_tokens), sizes)
        dropped = 1 - count / (tokens.shape[1] - prefix)
        return Reduced(torch.add(reduced, correction, alpha=dropped).to(tokens.dtype), stays, sizes)

    def match_by(self, tokens: Tensor, keys: Tensor) -> None:
        """Lets patches be compared by the leading directions of some keys, before training.

        Args:
            tokens: ``(batch, prefix + patches, width)``.
            keys: What similarity is to be measured by, of the same patches, ``(batch, patches, any)``. Their mean is
                taken off, since attention does not see it.
        """
        normed = self.reduce[0](tokens[:, self.num_prefix_tokens :].to(self.match.weight.dtype))
        inputs, keys = (rows.detach().flatten(0, 1).cpu().double() for rows in (F.pad(normed, (0, 1), value=1.0), keys))
        keys = keys - keys.mean(0)
        directions = torch.linalg.eigh(keys.T @ keys).eigenvectors[:, -_MATCHING:]
        products = inputs.T @ inputs
        products.diagonal().add_(_RIDGE * products.diagonal().mean())
        solved = torch.linalg.solve(products, inputs.T @ keys @ (directions * directions.sum(0).sign())).T
        with torch.no_grad():
            self.match.weight.zero_()[: len(solved)] = solved[:, :-1].to(self.match.weight)
            self.match.bias.zero_()[: len(solved)] = solved[:, -1].to(self.match.bias)

    def _read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens after the norm, and the channels of context and patches."""
        patches = tokens.shape[1] - self.num_prefix_tokens
        if patches != self.num_patches and not self.any_length:
            raise UserError(
                f"This mixer was fitted to {self.num_patches} patches, and {patches} came: fit one for this image "
                "size, or a network that takes any number, mlp or transformer."
            )
        normed = self.reduce[0](tokens.to(self.correction.weight.dtype))
        hidden: Tensor = self.body(self.reduce[1](normed[:, self.num_prefix_tokens - self.num_context_tokens :]))
        return normed, hidden

    def _scores(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self.score(hidden[:, self.num_context_tokens :]).squeeze(-1)
        return scores

    def _correction(self, channels: Tensor, sizes: Tensor | None) -> Tensor:
        """What is added to all tokens that stay, per share of the patches that go."""
        left_alone = self.num_prefix_tokens - self.num_context_tokens
        if self.merges and sizes is not None:
            channels = torch.cat([channels, sizes[:, left_alone:].log().unsqueeze(-1).to(channels)], -1)
        return F.pad(self.correction(channels), (0, 0, left_alone, 0))


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
