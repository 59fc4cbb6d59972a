r"""Images per second of embed from end to end, beside those of the model alone on the same batches.

    python benchmarks/embed.py open_clip:local-dir:photos/photo-clip-s14 photos/imagenette/val --limit 256 \
        --out benchmarks/results/embed-photos.json

Beside them is a loop as users write it: Pillow, the model's preprocessing and its image encoder, batch after batch. All
are timed in turn, so that what else the machine does hits them alike. ``share`` is the median over rounds of a rate
divided by the model's in the same round, and ``decode_share`` what was waited for decoding. ``rss_mb`` is the peak of
the command in a process of its own, without the processes that decode.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import Results, main
from memory import peak_rss_mib
from PIL import Image
from torch import Tensor

from patchranking.data.images import read_image
from patchranking.data.streams import ImageStream, load_stream
from patchranking.embedding.decode import Work
from patchranking.embedding.encoder import Encoder
from patchranking.embedding.job import ENGINES
from patchranking.embedding.listed import Listed
from patchranking.embedding.pipeline import Clock, decoder_of
from patchranking.embedding.settings import EmbedSettings, EngineName, PrecisionName
from patchranking.embedding.shards import ShardEmbedder
from patchranking.embedding.store import store_of
from patchranking.evaluation.environment import environment
from patchranking.methods.attach import pruner_or_method
from patchranking.towers.load import LoadedModel, load_model

LOOP = "open_clip loop"
Timed = Callable[[], Clock]


def embed(
    model: str,
    data: str,
    out: Path = Path("benchmarks/results/embed-photos.json"),
    pruner: Path | None = None,
    engines: list[EngineName] = ["local"],  # noqa: B006
    precisions: list[PrecisionName] = ["fp32"],  # noqa: B006
    workers: list[int] = [0, 1, 2],  # noqa: B006
    batch_size: int = 32,
    limit: int = 512,
    rounds: int = 5,
    device: str = "cpu",
) -> None:
    """Times embed, the model alone and a plain loop.

    Args:
        model: The model.
        data: The images, all of which can be read.
        out: The JSON file.
        pruner: Folder of a pruner, or the name of a method; the dense model without one. The plain loop is dense.
        engines: local, ray.
        precisions: fp32, bf16; the plain loop is fp32.
        workers: Numbers of processes that decode.
        batch_size: Images the model takes at once.
        limit: The first so many images.
        rounds: How often each is timed.
        device: cpu, cuda, ...
    """
    results, loaded, stream = Results(out), load_model(model, device), load_stream(data, limit)
    images = sum(1 for _ in islice(stream.entries(), limit))
    given = None if pruner is None else pruner_or_method(pruner)
    options = ["--limit", str(limit), "--batch_size", str(batch_size), "--device", device]
    options += [] if pruner is None else ["--pruner", str(pruner)]

    def rows_of(precision: PrecisionName) -> list[dict[str, Any]]:
        settings = EmbedSettings(precision=precision, batch_size=batch_size)
        encoder = Encoder(loaded, given, settings)
        pixels = batches(loaded, stream, limit, batch_size)
        timed: dict[tuple[str, int], Timed] = {
            (engine, number): partial(run, loaded, stream, encoder, replace(settings, workers=number), engine, limit)
            for engine in engines
            for number in workers
        }
        if precision == "fp32":
            timed[LOOP, 0] = partial(loop, loaded, stream, limit, batch_size)
        clocks = in_turn({("model", 0): partial(alone, encoder, pixels), **timed}, rounds)
        alone_rates = [images / sum(clock.seconds.values()) for clock in clocks.pop(("model", 0))]
        rows = []
        for (engine, number), own in clocks.items():
            rates = [images / clock.seconds["all"] for clock in own]
            memory = None
            if engine != LOOP:
                more = ["--precision", precision, "--workers", str(number), "--engine", engine]
                memory = peak_rss_mib(["embed", model, data, *options, *more])
            shares = [rate / other for rate, other in zip(rates, alone_rates, strict=True)]
            decoding = [clock.seconds["decode"] / clock.seconds["all"] for clock in own if "decode" in clock.seconds]
            rows.append(
                {
                    "engine": engine,
                    "backend": "eager",
                    "precision": precision,
                    "workers": number,
                    "images_per_second": median(rates),
                    "model_only": median(alone_rates),
                    "share": median(shares),
                    "decode_share": median(decoding) if decoding else None,
                    "rss_mb": memory,
                }
            )
        return rows

    rows = [row for precision in precisions for row in results.once(precision, partial(rows_of, precision))]
    about = {"model": model, "data": data, "images": images, "batch_size": batch_size, "rounds": rounds}
    results.write(environment(torch.device(device)), rows, pruner=None if pruner is None else str(pruner), **about)


def in_turn(timed: dict[tuple[str, int], Timed], rounds: int) -> dict[tuple[str, int], list[Clock]]:
    """Runs each once to warm up, then all in turn, so many times; returns the clocks of the rounds."""
    found = [{name: one() for name, one in timed.items()} for _ in range(rounds + 1)][1:]
    return {name: [one[name] for one in found] for name in timed}


def batches(model: LoadedModel, stream: ImageStream, limit: int, size: int) -> list[Tensor]:
    """The pixels of all images, as embed decodes them."""
    decoder, entries = decoder_of(model, stream), list(islice(stream.entries(), limit))
    return [
        decoder.__getitems__(Work(0, start, entries[start : start + size])).pixels
        for start in range(0, len(entries), size)
    ]


def alone(encoder: Encoder, pixels: list[Tensor]) -> Clock:
    """The model on batches that are decoded already."""
    clock = Clock()
    with clock.waiting("all"):
        for batch in pixels:
            encoder(batch).cpu()
    return clock


def run(
    model: LoadedModel, stream: ImageStream, encoder: Encoder, settings: EmbedSettings, engine: EngineName, limit: int
) -> Clock:
    """Embed from end to end: listing, decoding, the model, writing."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        store, listed = store_of(Path(name), "parquet"), Listed(Path(name) / "_list")
        listed.extend(islice(stream.entries(), limit), 4096)
        embedder = ShardEmbedder(model, stream, encoder, settings, store, listed, failed=False)
        ENGINES[engine](embedder, range(listed.shards), lambda _: None)
    embedder.clock.seconds["all"] = time.perf_counter() - began
    return embedder.clock


@torch.inference_mode()
def loop(model: LoadedModel, stream: ImageStream, limit: int, size: int) -> Clock:
    """What users write: open, preprocess, stack, encode."""
    clock, encode = Clock(), getattr(model.model, "encode_image", model.tower)
    began = time.perf_counter()
    entries, features = list(islice(stream.entries(), limit)), []
    for start in range(0, len(entries), size):
        with clock.waiting("decode"):
            content = [stream.content(entry.place) for entry in entries[start : start + size]]
            pictures = [Image.open(one).convert("RGB") if isinstance(one, Path) else read_image(one) for one in content]
            pixels = torch.stack([model.preprocess(picture) for picture in pictures])
        features.append(encode(pixels.to(model.tower.device)).cpu())
    torch.cat(features)
    clock.seconds["all"] = time.perf_counter() - began
    return clock


if __name__ == "__main__":
    main(embed)
