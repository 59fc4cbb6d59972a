"""Predictors: tiny networks that read early tokens and score patches (Phase II)."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["MixerPredictor"]


class MixerPredictor(nn.Module):
    """One MLP-Mixer block over reduced tokens (paper, section 3.2, Mix-MLP).

    Prefix tokens take part in the mixing as context and get no score.

    Args:
        width: Channels of the tower's tokens.
        num_prefix_tokens: Tokens before the patches.
        num_patches: Patches the token mixing is built for.
        channels: Reduced channels.
        token_hidden: Hidden units of the token-mixing MLP.
        channel_hidden: Hidden units of the channel-mixing MLP.
    """

    def __init__(
        self,
        width: int,
        num_prefix_tokens: int,
        num_patches: int,
        channels: int = 32,
        token_hidden: int = 16,
        channel_hidden: int = 64,
    ) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.config = {
            "width": width,
            "num_prefix_tokens": num_prefix_tokens,
            "num_patches": num_patches,
            "channels": channels,
            "token_hidden": token_hidden,
            "channel_hidden": channel_hidden,
        }
        tokens = num_prefix_tokens + num_patches
        self.reduce = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))
        self.token_norm = nn.LayerNorm(channels)
        self.token_mixing = _mlp(tokens, token_hidden)
        self.channel_norm = nn.LayerNorm(channels)
        self.channel_mixing = _mlp(channels, channel_hidden)
        self.score = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores patches.

        Args:
            tokens: ``(batch, prefix + patches, width)``.

        Returns:
            Importance ``(batch, patches)``, higher = keep.
        """
        x = self.reduce(tokens)
        x = x + self.token_mixing(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channel_mixing(self.channel_norm(x))
        return self.score(x[:, self.num_prefix_tokens :]).squeeze(-1)


def _mlp(size: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))
