"""Every way to encode images behind one interface: dense, a pruner, baselines, the oracle.

A new baseline is one file with a ``Method`` and one line in ``METHODS``; evaluation, charts and tables take it from
there.
"""

from __future__ import annotations

from collections.abc import Sequence

from patchranking.errors import UserError
from patchranking.methods.a_vit import AViT
from patchranking.methods.centre_crop import CentreCrop
from patchranking.methods.cls_attention import ClsAttention
from patchranking.methods.dense import Dense
from patchranking.methods.evit import EViT
from patchranking.methods.golden import Golden
from patchranking.methods.low_res import LowRes
from patchranking.methods.method import Encoded, Encoding, Method, Style
from patchranking.methods.patchranking import PatchRanking
from patchranking.methods.pitome import PiToMe
from patchranking.methods.random import Random
from patchranking.methods.tome import ToMe

__all__ = ["METHODS", "STYLES", "Dense", "Encoded", "Encoding", "Method", "PatchRanking", "Style", "named"]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (ToMe(), PiToMe(), LowRes(), ClsAttention(), EViT(), AViT(), CentreCrop(), Random(), Golden())
}
"""Name -> baseline or oracle, in the order of charts and tables."""

STYLES: dict[str, Style] = {Dense.name: Dense.style, PatchRanking.name: PatchRanking.style} | {
    name: method.style for name, method in METHODS.items()
}
"""Name of every method -> how charts draw it, in the same order."""


def named(names: Sequence[str]) -> list[Method]:
    """Baselines and oracles by their names.

    Raises:
        UserError: If there is no such method.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise UserError(f"Unknown method '{unknown[0]}': choose from {', '.join(METHODS)}.")
    return [METHODS[name] for name in names]
