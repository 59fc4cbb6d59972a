"""patchranking embed."""

from __future__ import annotations

from pathlib import Path

from patchranking.embedding.settings import EmbedSettings, EngineName, FormatName, RetryName

__all__ = ["embed"]

_SHOWN = 10


def embed(
    model: str,
    data: str,
    settings: EmbedSettings,
    pruner: Path | None = None,
    out: Path = Path("runs/embed"),
    format: FormatName = "parquet",
    texts: Path | None = None,
    retry: RetryName = "none",
    shard_size: int = 4096,
    limit: int | None = None,
    engine: EngineName = "local",
    device: str = "cpu",
) -> None:
    """Turns images of any number into vectors, in resumable shards; takes new images when it is run again.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME; or the folder of an
            exported model, which runs on the CPU.
        data: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], folders joined by commas, a list of
            paths (.txt, .parquet), or a list of captions (.tsv, .csv, .json).
        settings: How to embed.
        pruner: Folder written by fit or tune, a repository on the Hub, or the name of a method that needs no fit; the
            dense model without one.
        out: Folder for the shards and the manifest.
        format: Parquet shards, or npy, the layout of clip-retrieval.
        texts: Captions to embed into OUT/_texts: a .txt file of one a line, or a list of captions.
        retry: failed takes the images that have failed, and no others.
        shard_size: Images of a shard, at most; a kill loses those in flight.
        limit: The first so many images, in their order.
        engine: Where to compute: in this process, or on a Ray cluster, RAY_ADDRESS or this machine.
        device: cpu, cuda, cuda:1, mps, ...
    """
    from patchranking.data.streams import load_stream  # here, so that --help need not wait for torch
    from patchranking.embedding.job import embed_to
    from patchranking.embedding.texts import embed_texts
    from patchranking.exporting.model import open_model
    from patchranking.methods.attach import pruner_or_method

    given, stream = None if pruner is None else pruner_or_method(pruner), load_stream(data, limit)
    loaded = open_model(model, device)
    manifest = embed_to(loaded, stream, out, given, settings, format, shard_size, retry, limit, engine)
    totals = manifest["totals"]
    print(f"{totals['in']} images in = {totals['out']} embedded + {totals['failed']} failed; wrote {out}")
    if "dense" in totals:
        print(f"{totals['dense']} of those embedded ran densely, estimated 1 - cosine above {manifest['fallback']:g}")
    _print_counts("failed", manifest["failed"])
    _print_counts("left out", manifest["left_out"])
    if texts is not None:
        totals = embed_texts(loaded, texts, out / "_texts", settings, format, shard_size)["totals"]
        print(f"{totals['in']} texts in = {totals['out']} embedded + {totals['failed']} failed; wrote {out / '_texts'}")


def _print_counts(what: str, reasons: dict[str, int]) -> None:
    ordered = sorted(reasons.items(), key=lambda one: -one[1])
    for reason, number in ordered[:_SHOWN]:
        print(f"{number} {what}: {reason}")
    if more := sum(number for _, number in ordered[_SHOWN:]):
        print(f"{more} {what}: other reasons")
