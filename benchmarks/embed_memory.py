"""Memory of embed after few and after many generated images, in one run.

    python benchmarks/embed_memory.py --out benchmarks/results/embed_memory.json

The model is small and random, so that all memory there is has to do with the number of images.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from common import Results, main
from damaged_folder import SIDE, small_model
from memory import UNITS_PER_MIB
from PIL import Image

from patchranking.data.streams import Entry, ImageStream
from patchranking.embedding.job import embed_to
from patchranking.embedding.settings import EmbedSettings
from patchranking.evaluation.environment import environment
from patchranking.files import make_folder


def embed_memory(
    out: Path = Path("benchmarks/results/embed_memory.json"),
    sizes: list[int] = [20_000, 200_000],  # noqa: B006
    most: float = 1.1,
) -> None:
    """Embeds generated images and notes the peak of the resident memory on the way.

    Args:
        out: The JSON file.
        sizes: After how many images; the last is all.
        most: The last peak may be so many times the first.
    """
    results, stream = Results(out), Generated(sizes)
    with tempfile.TemporaryDirectory() as name:
        embed_to(small_model(), stream, make_folder(name), None, EmbedSettings(batch_size=256, workers=0))
    rows = [{"rows": size, "peak_rss_mb": stream.peaks[size]} for size in sizes]
    results.write(environment(torch.device("cpu")), rows)
    if rows[-1]["peak_rss_mb"] > most * rows[0]["peak_rss_mb"]:
        sys.exit("memory grows with the number of images")


class Generated(ImageStream):
    """Images of one colour each, as many as the last of some numbers; at each of these it notes the peak of memory."""

    def __init__(self, sizes: list[int]) -> None:
        self.identity, self.left_out, self.sizes = f"generated:{sizes[-1]}", Counter(), sizes
        self.peaks: dict[int, float] = {}

    def entries(self) -> Iterator[Entry]:
        return (Entry(f"row-{number:08d}", str(number).encode()) for number in range(self.sizes[-1]))

    def content(self, place: bytes) -> Image.Image:
        number = int(place)
        if number + 1 in self.sizes:
            self.peaks[number + 1] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNITS_PER_MIB
        return Image.new("RGB", (SIDE, SIDE), (number % 256, number // 256 % 256, number // 65536))


if __name__ == "__main__":
    main(embed_memory)
