"""Embeds a folder in which many files are damaged or odd: nothing is lost, and good pictures keep their vectors.

    python benchmarks/damaged_folder.py --out benchmarks/results/damaged_folder.json

The model is small and random. A second run finds good pictures in the places of the damaged ones: the vectors of all
others must be the same, bit for bit.
"""

from __future__ import annotations

import functools
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from common import Results, main
from PIL import Image, ImageCms, PngImagePlugin
from torch import Tensor

from patchranking.data.base import printable
from patchranking.embedding.job import embed_to
from patchranking.embedding.settings import EmbedSettings
from patchranking.evaluation.environment import environment
from patchranking.extras import import_extra
from patchranking.towers import as_tower
from patchranking.towers.load import LoadedModel

SIDE = 32
SETTINGS = EmbedSettings(dtype="float32", batch_size=64, workers=1)
ORIENTATION = 0x0112


def damaged_folder(
    out: Path = Path("benchmarks/results/damaged_folder.json"), files: int = 10_000, damaged: int = 2500, seed: int = 0
) -> None:
    """Makes the folder, embeds it twice and checks the promises.

    Args:
        out: The JSON file.
        files: Files in the folder.
        damaged: How many of them are damaged or odd, of all kinds alike.
        seed: Seed of pictures and damages.
    """
    results, model, kinds = Results(out), small_model(), list(KINDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        bad = fill(folder, files, damaged, seed)
        first = embed_to(model, str(folder), Path(name) / "first", None, SETTINGS, shard_size=1024)
        before = statuses(Path(name) / "first")
        for path in bad:
            if path.is_file() and not path.is_symlink():
                path.chmod(0o644)
                path.write_bytes(saved(noise(random.Random(0)), "PNG"))
        embed_to(model, str(folder), Path(name) / "second", None, SETTINGS, shard_size=1024)
        after = statuses(Path(name) / "second")
        names = {printable(path.relative_to(folder).as_posix()): kind for path, kind in bad.items()}
    same = list(before) == list(after) and all(
        np.array_equal(vector, after[key][0]) for key, (vector, _) in before.items() if key not in names
    )
    rows = [row(kind, [before.get(key) for key, own in names.items() if own == kind]) for kind in kinds]
    good = [before.get(f"good/{number:05d}.jpg") for number in range(files - damaged)]
    rows.append(row("good", good))
    left_out = sum(first["left_out"].values())
    results.write(
        environment(torch.device("cpu")), rows, totals={**first["totals"], "left_out": left_out}, good_vectors_same=same
    )
    lost = files - first["totals"]["in"] - left_out
    if not same or lost or rows[-1]["failed"] or first["totals"]["in"] != len(before):
        sys.exit(f"promises are broken: {lost} files lost, vectors the same: {same}, good ones: {rows[-1]}")


def row(kind: str, found: list[tuple[np.ndarray, str] | None]) -> dict[str, Any]:
    """What became of the files of a kind: embedded, failed for a reason, or left out as no picture."""
    reasons = Counter(one[1] for one in found if one is not None and one[1])
    return {
        "kind": kind,
        "files": len(found),
        "embedded": sum(one is not None and not one[1] for one in found),
        "failed": reasons.total(),
        "left_out": found.count(None),
        "reason": max(reasons, key=lambda one: reasons[one], default=None),
    }


def statuses(folder: Path) -> dict[str, tuple[np.ndarray, str]]:
    """Key -> vector and error, in the order of the shards."""
    table = pq.read_table(folder)
    vectors = [np.array(vector if vector is not None else [], np.float32) for vector in table["embedding"].to_pylist()]
    errors = [error or "" for error in table["error"].to_pylist()]
    return dict(zip(table["key"].to_pylist(), zip(vectors, errors, strict=True), strict=True))


def fill(folder: Path, files: int, damaged: int, seed: int) -> dict[Path, str]:
    """Writes good pictures into ``good`` and damaged ones into ``bad``; returns the damaged ones with their kinds."""
    drawn, bad = random.Random(seed), {}
    for name in ("good", "bad"):
        (folder / name).mkdir(parents=True)
    for number in range(files - damaged):
        (folder / f"good/{number:05d}.jpg").write_bytes(saved(noise(drawn), "JPEG"))
    for number in range(damaged):
        kind = list(KINDS)[number % len(KINDS)]
        suffix, damage = KINDS[kind]
        path = folder / f"bad/{number:05d}{suffix}"
        damage(path, drawn)
        bad[path] = kind
    return bad


def noise(drawn: random.Random, width: int = 48, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A smooth picture, each time another."""
    levels = np.random.default_rng(drawn.randrange(2**32)).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    """A picture as the content of a file."""
    content = BytesIO()
    picture.save(content, form, **options)
    return content.getvalue()


Damage = Callable[[Path, random.Random], object]


def cut(form: str) -> Damage:
    def damage(path: Path, drawn: random.Random) -> None:
        content = saved(noise(drawn), form)
        path.write_bytes(content[: drawn.randrange(1, len(content) - 12)])

    return damage


def flipped(form: str) -> Damage:
    def damage(path: Path, drawn: random.Random) -> None:
        content = bytearray(saved(noise(drawn), form))
        for _ in range(drawn.randrange(1, 9)):
            content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
        path.write_bytes(content)

    return damage


def picture(form: str, mode: str = "RGB", size: tuple[int, int] = (48, 40), **options: Any) -> Damage:
    return lambda path, drawn: path.write_bytes(saved(noise(drawn, *size, mode=mode), form, **options))


def content(made: Callable[[random.Random], bytes]) -> Damage:
    return lambda path, drawn: path.write_bytes(made(drawn))


def sixteen_bits(path: Path, drawn: random.Random) -> None:
    levels = np.asarray(noise(drawn, mode="L"), np.uint16) * 257
    path.write_bytes(saved(Image.fromarray(levels), "PNG"))


def fractions(path: Path, drawn: random.Random) -> None:
    levels = np.asarray(noise(drawn, mode="L"), np.float32) / 255 * drawn.choice((1, 1e6))
    path.write_bytes(saved(Image.fromarray(levels), "TIFF"))


def transparent(path: Path, drawn: random.Random) -> None:
    path.write_bytes(saved(noise(drawn).quantize(16), "PNG", transparency=drawn.randrange(16)))


def animated(form: str) -> Damage:
    def damage(path: Path, drawn: random.Random) -> None:
        frames = [noise(drawn) for _ in range(3)]
        path.write_bytes(saved(frames[0], form, save_all=True, append_images=frames[1:], duration=40))

    return damage


def turned(path: Path, drawn: random.Random) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = drawn.randrange(1, 9)
    path.write_bytes(saved(noise(drawn), "JPEG", exif=exif))


def long_text(path: Path, drawn: random.Random) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("comment", "x" * 3_000_000, zip=True)
    path.write_bytes(saved(noise(drawn), "PNG", pnginfo=about))


def unreadable(path: Path, drawn: random.Random) -> None:
    path.write_bytes(saved(noise(drawn), "PNG"))
    path.chmod(0)


def linked(to: Callable[[Path], str]) -> Damage:
    return lambda path, _: path.symlink_to(to(path))


def small_model() -> LoadedModel:
    """A small random model of open_clip, for any script that needs vectors and no meaning."""
    open_clip = import_extra("open_clip", "The small model", "open-clip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = {"image_size": SIDE, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
        text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
        model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval().requires_grad_(False)
    return LoadedModel("small", model, as_tower(model), pixels, None, 1.0, (0.5,) * 3, (0.5,) * 3)


def pixels(image: Image.Image) -> Tensor:
    """The small model's preprocessing."""
    levels = np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return torch.from_numpy(levels).permute(2, 0, 1) / 127.5 - 1


@functools.cache
def huge() -> bytes:
    """A picture of one colour with 20000 x 20000 pixels: 50 kB."""
    return saved(Image.new("1", (20000, 20000)), "PNG")


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KINDS: dict[str, tuple[str, Damage]] = {
    "JPEG, cut": (".jpg", cut("JPEG")),
    "PNG, cut": (".png", cut("PNG")),
    "WebP, cut": (".webp", cut("WEBP")),
    "TIFF, cut": (".tif", cut("TIFF")),
    "GIF, cut": (".gif", cut("GIF")),
    "empty": (".jpg", content(lambda _: b"")),
    "zero bytes": (".png", content(lambda drawn: bytes(drawn.randrange(1, 5000)))),
    "random bytes": (".jpg", content(lambda drawn: drawn.randbytes(2000))),
    "text": (".png", content(lambda _: b"<html>404 Not Found</html>\n")),
    "JPEG, bits flipped": (".jpg", flipped("JPEG")),
    "PNG, bits flipped": (".png", flipped("PNG")),
    "WebP, bits flipped": (".webp", flipped("WEBP")),
    "PNG with the suffix of a JPEG": (".jpg", picture("PNG")),
    "no suffix": ("", picture("PNG")),
    "1 x 1": (".png", picture("PNG", size=(1, 1))),
    "1 x 20000": (".png", picture("PNG", size=(1, 20000))),
    "20000 x 100": (".png", picture("PNG", size=(20000, 100), mode="L")),
    "20000 x 20000": (".png", content(lambda _: huge())),
    "CMYK": (".jpg", picture("JPEG", "CMYK")),
    "16 bits": (".png", sixteen_bits),
    "TIFF of fractions": (".tif", fractions),
    "1 bit": (".png", picture("PNG", "1")),
    "grey with alpha": (".png", picture("PNG", "LA")),
    "palette with transparency": (".png", transparent),
    "animated GIF": (".gif", animated("GIF")),
    "animated WebP": (".webp", animated("WEBP")),
    "EXIF turns": (".jpg", turned),
    "EXIF, broken": (".jpg", content(lambda drawn: broken(drawn, {"exif": b"Exif\0\0" + drawn.randbytes(60)}))),
    "ICC profile": (".jpg", picture("JPEG", icc_profile=PROFILE)),
    "ICC profile, broken": (".jpg", content(lambda drawn: broken(drawn, {"icc_profile": drawn.randbytes(300)}))),
    "very long text in a PNG": (".png", long_text),
    "JPEG with more behind it": (".jpg", content(lambda drawn: saved(noise(drawn), "JPEG") + drawn.randbytes(999))),
    "progressive JPEG": (".jpg", picture("JPEG", progressive=True)),
    "link to its own folder": ("", linked(lambda path: str(path.parent))),
    "link to itself": (".png", linked(lambda path: path.name)),
    "link to nothing": (".png", linked(lambda path: "nothing.png")),
    "pipe": (".png", lambda path, _: os.mkfifo(path)),
    "without permissions": (".png", unreadable),
    "Unicode in the name": (" ü猫🐈\u202e.png", picture("PNG")),
    "newline in the name": (" \n.png", picture("PNG")),
    "bytes in the name that are no text": (os.fsdecode(b" \xff\xfe.png"), picture("PNG")),
    "very long name": ("x" * 240 + ".png", picture("PNG")),
}
"""Kind -> how its names end, and what writes one."""


def broken(drawn: random.Random, options: dict[str, bytes]) -> bytes:
    """A good JPEG with metadata that mean nothing."""
    return saved(noise(drawn), "JPEG", **options)


if __name__ == "__main__":
    main(damaged_folder)
