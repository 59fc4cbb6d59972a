"""How images become vectors, and how these are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from patchranking.errors import UserError, check_numbers

__all__ = ["EmbedSettings", "EngineName", "FormatName", "PrecisionName", "RetryName"]

PrecisionName = Literal["fp32", "bf16"]
DtypeName = Literal["float16", "float32"]
FormatName = Literal["parquet", "npy"]
RetryName = Literal["none", "failed"]
EngineName = Literal["local", "ray"]


@dataclass(frozen=True)
class EmbedSettings:
    """How to embed.

    Attributes:
        keep: Share of the patches that reaches the end, with a pruner; its own, or 0.5 of a method, when omitted.
        macs: Share of the dense MACs in place of a keep rate.
        fallback: Estimated error of a fitted pruner, 1 - cosine to the dense feature, above which an image runs
            densely, too; none does when omitted.
        precision: Of weights and activations: fp32 or bf16.
        normalize: Scale vectors to length 1.
        dtype: Of the vectors as they are stored: float16 or float32.
        batch_size: Images that the model takes at once; by default 32 on a CPU, 256 elsewhere or as many as fit.
        workers: Processes that decode pictures, 0 for none; by default as many as suit the machine.
        seed: Of the method random, which keeps the same patches of every image.
    """

    keep: float | None = None
    macs: float | None = None
    fallback: float | None = None
    precision: PrecisionName = "fp32"
    normalize: bool = False
    dtype: DtypeName = "float16"
    batch_size: int | Literal["auto"] = "auto"
    workers: int | Literal["auto"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.keep is not None and self.macs is not None:
            raise UserError("A keep rate and a share of the MACs are two ways to say the same: give one of them.")
        for name in ("keep", "macs"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate <= 1:
                raise UserError(f"'{name}' is a share above 0 and at most 1, not {rate:g}.")
        if self.fallback is not None and not self.fallback >= 0:
            raise UserError(f"'fallback' is an estimated 1 - cosine, 0 or more, not {self.fallback:g}.")
        least = {"batch_size": 1, "workers": 0, "seed": 0}
        given = {name: getattr(self, name) for name in least if getattr(self, name) != "auto"}
        check_numbers(given, **{name: least[name] for name in given})
