"""Reads pictures of any kind, or says in one sentence why not."""

from __future__ import annotations

import math
import stat
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from patchranking.errors import reason

__all__ = ["HEIF_SUFFIXES", "UnreadableImageError", "no_picture", "read_image", "read_sized", "reason", "suffixes"]

# What Pillow opens by itself; EPS and WMF start programs of the system, the others hold no pictures or are stubs.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "DIB", "PSD", "SGI", "SUN", "ICO"),
    *("ICNS", "CUR", "DDS", "PCX", "DCX", "MSP", "XBM", "XPM", "FLI", "HEIF", "TGA"),
)
HEIF_SUFFIXES = {".heic", ".heif", ".hif"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_NEEDS_HEIF = "HEIC needs pillow-heif: pip install 'patchranking[heif]'"
_MAX_PIXELS = 178_956_970  # as Pillow's, which a program can switch off
_MAX_BYTES = 2**30
_MAX_RATIO = 500  # a picture of 20000 x 1, its short side resized to 224, would have a billion pixels
_JPEG = b"\xff\xd8"
_JPEG_SCAN, _JPEG_EXIF, _JPEG_COLOURS, _JPEG_COMMENT = 0xDA, 0xE1, 0xEE, 0xFE
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"}
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[number] for number in (5, 6, 7, 8)}


class UnreadableImageError(Exception):
    """A picture cannot be used; the message is the reason."""


def read_image(source: Path | bytes | Image.Image) -> Image.Image:
    """Opens a picture as RGB: turned as its EXIF says, first frame of animations, more than 8 bits scaled to 8.

    Args:
        source: A file, the content of one, or a picture opened by someone else.

    Raises:
        UnreadableImageError: If the file is empty, damaged, huge or no picture of a format that is meant to be read,
            or the picture is very long and thin, or its values have no known range.
    """
    return read_sized(source)[0]


def read_sized(source: Path | bytes | Image.Image, shortest: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Opens a picture as ``read_image`` does, and says how large it is.

    Args:
        source: As there.
        shortest: Where given, a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as its
            shorter side has so many pixels; that takes a fraction of the time.

    Returns:
        The picture, and width and height of the whole.

    Raises:
        UnreadableImageError: As there.
    """
    try:
        return _rgb(source, shortest)
    except UnreadableImageError:
        raise
    except Exception as error:
        if bare := _bare(source):
            with suppress(Exception):
                return _rgb(bare, shortest)
        unknown = isinstance(error, UnidentifiedImageError)
        why = "cannot identify the format, or it is none that is read" if unknown else reason(error)
        raise UnreadableImageError(why) from error


@cache
def suffixes() -> frozenset[str]:
    """Ends of the names of files that are read as pictures: those that Pillow has for the formats read here."""
    formats = {*_formats(), "MPO"}
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in formats)


def no_picture(file: Path) -> str:
    """Why a file is left out, told by its name, or by its start where it has no suffix; empty for a picture."""
    suffix = file.suffix.lower()
    if not file.is_file():
        return "a link to nothing" if file.is_symlink() else "no regular file"
    if suffix in suffixes():
        return ""
    if suffix in HEIF_SUFFIXES:
        return _NEEDS_HEIF
    if suffix:
        return f"'{suffix}' is no suffix of a picture"
    try:
        with Image.open(file, formats=[kind for kind in _formats() if Image.OPEN[kind][1]]):
            return ""
    except Image.DecompressionBombError:
        return ""
    except Exception:
        return _NEEDS_HEIF if _is_heif(file) else "no suffix, and no picture by its content"


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are opened; HEIF is among them where pillow-heif is installed."""
    Image.init()
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    except ImportError:
        pass
    return tuple(kind for kind in _FORMATS if kind in Image.OPEN)


def _rgb(source: Path | bytes | Image.Image, shortest: int | None) -> tuple[Image.Image, tuple[int, int]]:
    with _opened(source) as opened:
        _check_size(*opened.size)
        size = opened.size
        if shortest and min(size) >= 2 * shortest:
            width, height = (math.ceil(side * shortest / min(size)) for side in size)
            opened.draft(None, (width, height))
        opened.load()
        turn = _TURNS.get(_orientation(opened))
        image = opened if turn is None else opened.transpose(turn)
        if turn in _SIDEWAYS:
            size = size[::-1]
        if image.mode.startswith(("I", "F")):
            image = _eight_bits(image)
        if image.mode == "P":
            image = image.convert("RGBA")
        return image.convert("RGB"), size


def _bare(source: Path | bytes | Image.Image) -> bytes:
    """A file without its metadata, which may be what cannot be read; nothing where the source is no PNG or JPEG."""
    content = b""
    with suppress(OSError, ValueError):
        content = source.read_bytes() if isinstance(source, Path) else source if isinstance(source, bytes) else b""
    if content.startswith(_PNG):
        return _bare_png(content)
    return _bare_jpeg(content) if content.startswith(_JPEG) else b""


def _bare_png(content: bytes) -> bytes:
    bare, start = [_PNG], len(_PNG)
    while len(head := content[start : start + 8]) == 8:
        end = start + 12 + int.from_bytes(head[:4], "big")
        if head[4:] in _PNG_CHUNKS:
            bare.append(content[start:end])
        start = end
    return b"".join(bare)


def _bare_jpeg(content: bytes) -> bytes:
    """Keeps what the pixels need, the orientation, and Adobe's note on the colours where it is whole."""
    bare, start = [_JPEG], len(_JPEG)
    while len(head := content[start : start + 4]) == 4 and head[0] == 0xFF:
        if (kind := head[1]) == _JPEG_SCAN:
            return b"".join([*bare, content[start:]])
        size = 2 + int.from_bytes(head[2:], "big")
        spare = (0xE0 <= kind <= 0xEF and kind not in (_JPEG_EXIF, _JPEG_COLOURS)) or kind == _JPEG_COMMENT
        if not (spare or (kind == _JPEG_COLOURS and size < 16)):
            bare.append(content[start : start + size])
        start += size
    return b""


def _opened(source: Path | bytes | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes):
        size = len(source)
    else:
        status = source.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImageError("no regular file")
    if size == 0:
        raise UnreadableImageError("empty file")
    if size > _MAX_BYTES:
        raise UnreadableImageError(f"a file of {size} bytes, more than {_MAX_BYTES}")
    try:
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())
    except UnidentifiedImageError as error:
        if "HEIF" not in _formats() and _is_heif(source):
            raise UnreadableImageError(_NEEDS_HEIF) from error
        raise


def _is_heif(source: Path | bytes) -> bool:
    if isinstance(source, bytes):
        start = source[:12]
    else:
        with source.open("rb") as file:
            start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:] in _HEIF_BRANDS


def _check_size(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        raise UnreadableImageError(f"{width} x {height} pixels, more than {_MAX_PIXELS}")
    if max(width, height) > _MAX_RATIO * min(width, height):
        raise UnreadableImageError(f"{width} x {height} pixels: one side is over {_MAX_RATIO} times the other")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none that can be read; nothing else of the metadata matters."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16 bits, whole numbers up to 255 or 65535, and fractions up to 1 as well, to 0 ... 255."""
    levels = np.asarray(image)
    if image.mode not in "IF":
        return Image.fromarray((levels >> 8).astype(np.uint8))
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= 65535):
        raise UnreadableImageError(f"values from {low:g} to {high:g}, which are in none of the usual ranges of pixels")
    if image.mode == "F" and high <= 1:
        levels = np.round(levels * 255)
    elif high > 255:
        levels = levels / 256
    return Image.fromarray(levels.astype(np.uint8))
