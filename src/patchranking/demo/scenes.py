"""An endless, deterministic image-text data set: one named object on a textured, cluttered background.

Objects are glyphs of DejaVu Sans, the font that comes with matplotlib. Every scene is a pure function of
``(split, index)``, so a data set of any length needs no storage, and the object's mask is known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from patchranking.errors import UserError
from patchranking.extras import import_extra

__all__ = [
    "BACKGROUNDS",
    "CLASSES",
    "COLOURS",
    "SIZE",
    "SKETCH",
    "SPLITS",
    "TEMPLATES",
    "Scene",
    "caption",
    "colour",
    "key",
    "label",
    "scene",
]

SIZE = 96
"""Side of a scene in pixels."""

SPLITS = ("train", "val", "test")

SKETCH = "-sketch"
"""A split with this behind its name shows the same scenes as outlines, a domain the demo model has not seen."""

TEMPLATES = ("a {}.", "a photo of a {}.", "a picture of a {}.", "a {} on a background.")
"""Zero-shot prompt templates the demo model was trained with."""

_GLYPHS = {
    "sun": 0x2600,
    "cloud": 0x2601,
    "umbrella": 0x2602,
    "snowman": 0x2603,
    "comet": 0x2604,
    "star": 0x2605,
    "telephone": 0x260E,
    "ballot box": 0x2611,
    "cup of coffee": 0x2615,
    "shamrock": 0x2618,
    "pointing hand": 0x261B,
    "skull": 0x2620,
    "radioactive sign": 0x2622,
    "biohazard sign": 0x2623,
    "caduceus": 0x2624,
    "ankh": 0x2625,
    "moon and star": 0x262A,
    "peace sign": 0x262E,
    "yin yang": 0x262F,
    "ship wheel": 0x2638,
    "smiling face": 0x263B,
    "female sign": 0x2640,
    "male sign": 0x2642,
    "chess king": 0x265A,
    "chess queen": 0x265B,
    "chess rook": 0x265C,
    "chess bishop": 0x265D,
    "chess knight": 0x265E,
    "chess pawn": 0x265F,
    "spade": 0x2660,
    "club": 0x2663,
    "heart": 0x2665,
    "diamond": 0x2666,
    "hot spring": 0x2668,
    "pair of notes": 0x266B,
    "recycling sign": 0x267B,
    "wheelchair": 0x267F,
    "die": 0x2684,
    "flag": 0x2691,
    "hammer and pick": 0x2692,
    "anchor": 0x2693,
    "pair of swords": 0x2694,
    "pair of scales": 0x2696,
    "flask": 0x2697,
    "gear": 0x2699,
    "atom": 0x269B,
    "fleur-de-lis": 0x269C,
    "warning sign": 0x26A0,
    "lightning bolt": 0x26A1,
    "urn": 0x26B1,
    "pair of scissors": 0x2702,
    "airplane": 0x2708,
    "envelope": 0x2709,
    "victory hand": 0x270C,
    "writing hand": 0x270D,
    "pencil": 0x270E,
    "fountain pen": 0x2712,
    "check mark": 0x2714,
    "sunflower": 0x2742,
    "flower": 0x273F,
    "snowflake": 0x2744,
    "keyboard": 0x2328,
    "infinity sign": 0x221E,
    "omega": 0x03A9,
    "mouse": 0x1F42D,
    "cow": 0x1F42E,
    "cat": 0x1F431,
    "monkey": 0x1F435,
}

CLASSES = tuple(_GLYPHS)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (252, 211, 40),
    "green": (46, 140, 70),
    "teal": (20, 160, 160),
    "blue": (40, 90, 200),
    "purple": (120, 50, 160),
    "pink": (240, 110, 170),
    "brown": (115, 70, 35),
    "black": (22, 22, 26),
    "white": (244, 244, 240),
    "gray": (128, 128, 132),
}

BACKGROUNDS = ("plain", "striped", "checkered", "dotted", "wavy", "speckled", "shaded", "tiled")

_STROKE = 2

_PIXELS = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")).astype(np.float32)


@dataclass(frozen=True)
class Scene:
    """One generated image with everything that is known about it.

    Attributes:
        key: Stable name, ``"<split>/<index>"``.
        image: RGB picture of ``SIZE`` x ``SIZE`` pixels.
        label: Index into ``CLASSES``.
        caption: Plain English, e.g. ``"a red umbrella on a striped background"``.
        mask: Boolean array ``(SIZE, SIZE)``, true where the object is.
        clutter: Number of shapes around the object, 3 to 7.
        rotation: Of the object, -10 to 10 degrees.
        extent: Longer side of the object, 52 to 78 pixels.
    """

    key: str
    image: Image.Image
    label: int
    caption: str
    mask: np.ndarray
    clutter: int
    rotation: float
    extent: float


def scene(split: str, index: int) -> Scene:
    """Draws scene number ``index`` of ``split``.

    Args:
        split: One of ``SPLITS``, which share no scene, or one with ``SKETCH`` behind it.
        index: Any non-negative integer.

    Returns:
        The same scene for the same arguments, always.

    Raises:
        UserError: If the split is unknown.
    """
    rng = _generator(split, index)
    label, colour, texture = _words(rng)
    ink = np.array(COLOURS[colour], np.float32)
    paper = [c for c in map(np.array, COLOURS.values()) if np.abs(c - ink).sum() > 290]
    first, second = rng.choice(len(paper), 2, replace=False)
    canvas = _background(rng, texture, _jitter(rng, paper[first]), _jitter(rng, paper[second]))
    canvas, clutter = _clutter(rng, canvas)
    alpha, rotation, extent = _object(rng, CLASSES[label])
    canvas = canvas + (_jitter(rng, ink) - canvas) * alpha[..., None]
    canvas = canvas * rng.uniform(0.85, 1.1) + rng.normal(0, rng.uniform(1, 5), canvas.shape)
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    return Scene(
        key=key(split, index),
        image=_outlines(image) if split.endswith(SKETCH) else image,
        label=label,
        caption=_caption(label, colour, texture),
        mask=alpha > 0.5,
        clutter=clutter,
        rotation=rotation,
        extent=extent,
    )


def key(split: str, index: int) -> str:
    """The key of a scene."""
    return f"{split}/{index:07d}"


def label(split: str, index: int) -> int:
    """The label of a scene, which is not drawn for it."""
    return int(_generator(split, index).integers(len(CLASSES)))


def colour(split: str, index: int) -> str:
    """The name of the colour of a scene's object, which is not drawn for it."""
    return _words(_generator(split, index))[1]


def caption(split: str, index: int) -> str:
    """The caption of a scene, which is not drawn for it."""
    return _caption(*_words(_generator(split, index)))


def _words(rng: np.random.Generator) -> tuple[int, str, str]:
    """What every scene begins with: its label, the colour of its object and its background."""
    return int(rng.integers(len(CLASSES))), str(rng.choice(list(COLOURS))), str(rng.choice(BACKGROUNDS))


def _caption(label: int, colour: str, texture: str) -> str:
    return f"{_article(colour)} {colour} {CLASSES[label]} on a {texture} background"


def _generator(split: str, index: int) -> np.random.Generator:
    drawn = split.removesuffix(SKETCH)
    if drawn not in SPLITS:
        raise UserError(
            f"The demo data has the splits {', '.join(SPLITS)}, and each as outlines, such as {SPLITS[0]}{SKETCH}, "
            f"not '{split}'."
        )
    return np.random.default_rng([SPLITS.index(drawn), index])


def _outlines(image: Image.Image) -> Image.Image:
    """Dark outlines over pale colours."""
    outlines = ImageOps.invert(image.convert("L").filter(ImageFilter.FIND_EDGES)).convert("RGB")
    return Image.blend(image, outlines, 0.6)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _jitter(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    return (colour + rng.uniform(-14, 14, 3)).astype(np.float32)


def _background(rng: np.random.Generator, texture: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    angle, period = rng.uniform(0, np.pi), rng.uniform(9, 24)
    b = a + (b - a) * rng.uniform(0.3, 0.7)
    y, x = _PIXELS - rng.uniform(0, SIZE, 2).astype(np.float32)[:, None, None]
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    match texture:
        case "striped":
            weight = np.sin(2 * np.pi * u / period) > 0
        case "checkered":
            weight = (np.sin(np.pi * u / period) > 0) ^ (np.sin(np.pi * v / period) > 0)
        case "dotted":
            weight = np.hypot(u % period - period / 2, v % period - period / 2) < period * 0.3
        case "wavy":
            weight = np.sin(2 * np.pi * (u + 4 * np.sin(v / 7)) / period) > 0
        case "speckled":
            weight = np.kron(rng.random((SIZE // 4, SIZE // 4)), np.ones((4, 4)))
        case "shaded":
            weight = (_PIXELS[0] * np.cos(angle) + _PIXELS[1] * np.sin(angle)) / SIZE
        case "tiled":
            shifted = u + (np.floor(v / period) % 2) * period
            weight = (v % period < 2) | (shifted % (2 * period) < 2)
        case _:
            weight = np.zeros((SIZE, SIZE))
    return a + (b - a) * np.asarray(weight, np.float32)[..., None]


def _clutter(rng: np.random.Generator, canvas: np.ndarray) -> tuple[np.ndarray, int]:
    """A canvas with shapes on it, and their number."""
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    palette = list(COLOURS.values())
    shapes = int(rng.integers(3, 8))
    for _ in range(shapes):
        x, y = rng.uniform(0, SIZE, 2)
        w, h = rng.uniform(4, 17, 2)
        ink = palette[int(rng.integers(len(palette)))]
        match int(rng.integers(4)):
            case 0:
                draw.line((x, y, x + (w - 10) * 2, y + (h - 10) * 2), fill=ink, width=int(rng.integers(1, 4)))
            case 1:
                draw.ellipse((x, y, x + w, y + h), fill=ink)
            case 2:
                draw.rectangle((x, y, x + w, y + h), outline=ink, width=2)
            case _:
                draw.polygon((x, y, x + w, y, x + w / 2, y - h), fill=ink)
    return np.asarray(image, np.float32), shapes


def _object(rng: np.random.Generator, name: str) -> tuple[np.ndarray, float, float]:
    """Opacity of the object at a random place, ``(SIZE, SIZE)`` in 0 ... 1, and its random rotation and extent."""
    rotation = rng.uniform(-10, 10)
    glyph = _glyph(name).rotate(rotation, Image.Resampling.BILINEAR, expand=True)
    box = glyph.getbbox()
    assert box is not None, name
    glyph = glyph.crop(box)
    extent = rng.uniform(52, 78)
    scale = extent / max(glyph.size)
    width, height = (max(2, round(side * scale)) for side in glyph.size)
    glyph = glyph.resize((width, height), Image.Resampling.BOX)
    left, top = int(rng.integers(2, SIZE - width - 1)), int(rng.integers(2, SIZE - height - 1))
    layer = Image.new("L", (SIZE, SIZE))
    layer.paste(glyph, (left, top))
    return np.asarray(layer, np.float32) / 255, rotation, extent


@cache
def _glyph(name: str) -> Image.Image:
    font = ImageFont.truetype(_font_file(), 128)
    left, top, right, bottom = (int(side) for side in font.getbbox(chr(_GLYPHS[name]), stroke_width=_STROKE))
    picture = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(picture).text((1 - left, 1 - top), chr(_GLYPHS[name]), font=font, fill=255, stroke_width=_STROKE)
    return picture


def _font_file() -> str:
    matplotlib = import_extra("matplotlib", "The demo data draws with matplotlib's font", "report")
    return str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
