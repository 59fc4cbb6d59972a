from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from patchranking.data import images
from patchranking.data.images import UnreadableImageError, no_picture, read_image, read_sized, reason, suffixes

GRADIENT = np.linspace(0, 255, 48 * 32).reshape(48, 32).astype(np.uint8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "picture"


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 7)])
def test_keeps_the_size_of_tiny_pictures(path, size):
    Image.new("RGB", size, (10, 20, 30)).save(path, "png")
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", size)
    assert image.getpixel((0, 0)) == (10, 20, 30)


def test_scales_16_bits_to_8(path):
    levels = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    Image.fromarray(levels).save(path, "png")
    seen = np.asarray(read_image(path))
    assert (seen[..., 0] == levels >> 8).all()
    assert (seen[..., 0] == seen[..., 2]).all()
    assert len(np.unique(seen)) == 256


def test_converts_cmyk(path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, "jpeg", quality=95)
    red, green, blue = read_image(path).getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I", "F"])
def test_reads_every_mode(path, mode):
    picture = Image.fromarray(GRADIENT).convert(mode)
    picture.save(path, "tiff" if mode in "IF" else "png")
    seen = np.asarray(read_image(path), int)
    assert read_image(path).mode == "RGB"
    expected = np.where(np.asarray(picture), 255, 0) if mode == "1" else GRADIENT
    assert np.array_equal(seen, np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("transparency", [0, bytes(range(0, 256, 2))])
@pytest.mark.filterwarnings("error")
def test_reads_palettes_with_transparency(path, transparency):
    picture = Image.fromarray(GRADIENT).convert("RGB").quantize(128)
    picture.save(path, "png", transparency=transparency)
    seen = np.asarray(read_image(path), int)
    assert np.abs(seen - GRADIENT[..., None]).max() <= 2


def test_reads_the_first_frame_of_an_animation(path):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(path, "gif", save_all=True, append_images=frames[1:])
    assert read_image(path).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).T),
        (8, np.rot90),
    ],
)
def test_turns_as_exif_says(path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GRADIENT).save(path, "jpeg", quality=100, exif=exif)
    seen = np.asarray(read_image(path), int)[..., 0]
    expected = turned(GRADIENT).astype(int)
    assert seen.shape == expected.shape
    assert np.abs(seen - expected).max() <= 2


def test_says_why_a_picture_cannot_be_used(path):
    Image.effect_noise((64, 64), 90).save(path, "jpeg")
    whole = path.read_bytes()
    for content, word in [
        (b"", "empty"),
        (b"just text", "cannot identify"),
        (np.random.default_rng(0).bytes(500), "cannot identify"),
        (whole[: len(whole) // 2], "truncated"),
        (whole[:20], "cannot identify"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UnreadableImageError, match=word) as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_unreadable(path):
    with pytest.raises(UnreadableImageError, match="FileNotFoundError"):
        read_image(path)


def test_a_decompression_bomb_is_unreadable(path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (64, 64)).save(path, "png")
    with pytest.raises(UnreadableImageError, match="DecompressionBombError"):
        read_image(path)


def test_32_bit_grey_within_8_bits_keeps_its_levels(tmp_path):
    levels = np.arange(0, 250, 10, dtype=np.int32).reshape(5, 5)
    Image.fromarray(levels).save(tmp_path / "grey.tif")
    assert np.array_equal(np.asarray(read_image(tmp_path / "grey.tif"))[..., 0], levels)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.array([[0, 255, 256, 65535]], np.int32), [[0, 0, 1, 255]]),
        (np.array([[0, 0.25, 0.5, 1]], np.float32), [[0, 64, 128, 255]]),
        (np.array([[0, 1.5, 100, 255]], np.float32), [[0, 1, 100, 255]]),
        (np.array([[0, 256, 512.5, 65535]], np.float32), [[0, 1, 2, 255]]),
        (np.array([[0, 1]], np.int32), [[0, 1]]),
        (np.array([[0, 256]], ">u2"), [[0, 1]]),
    ],
)
def test_values_are_scaled_by_their_range(path, levels, expected):
    Image.fromarray(levels).save(path, "tiff")
    assert np.asarray(read_image(path))[..., 1].tolist() == expected


@pytest.mark.parametrize(
    "levels",
    [
        np.array([[0, 70000]], np.int32),
        np.array([[-5, 255]], np.int32),
        np.array([[-0.5, 0.5]], np.float32),
        np.array([[0, 1e9]], np.float32),
        np.array([[0.5, np.nan]], np.float32),
        np.array([[0, np.inf]], np.float32),
    ],
)
def test_values_of_no_known_range_are_refused(path, levels):
    Image.fromarray(levels).save(path, "tiff")
    with pytest.raises(UnreadableImageError, match="values from"):
        read_image(path)


def test_a_dark_picture_of_16_bits_stays_dark(path):
    Image.fromarray(np.full((2, 2), 200, np.uint16)).save(path, "png")
    assert read_image(path).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (OSError("x" * 200), f"OSError: {'x' * 160}"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_a_reason_is_one_line_with_the_type_of_the_error(error, line):
    assert reason(error) == line


def test_reads_the_content_of_a_file_and_an_opened_picture_alike(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GRADIENT).save(path, "jpeg", exif=exif)
    seen = read_image(path)
    assert seen.size == (48, 32)
    assert read_image(path.read_bytes()).tobytes() == seen.tobytes()
    assert read_image(Image.open(path)).tobytes() == seen.tobytes()


@pytest.mark.parametrize(("source", "word"), [(b"", "empty"), (b"just text", "cannot identify"), (None, "Error")])
def test_says_why_content_cannot_be_used(source, word):
    with pytest.raises(UnreadableImageError, match=word):
        read_image(source)


def encoded(kind, image=None, **options):
    content = io.BytesIO()
    (image or Image.fromarray(GRADIENT)).save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("name", ["photo.jpg", "photo.eps", "photo"])
def test_postscript_starts_no_program(tmp_path, monkeypatch, name):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / name).write_bytes(encoded("EPS", Image.new("RGB", (8, 8))))
    no_picture(tmp_path / name)
    for source in (tmp_path / name, (tmp_path / name).read_bytes()):
        with pytest.raises(UnreadableImageError, match="cannot identify"):
            read_image(source)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["EPS", "WMF", "GRIB", "BUFR", "HDF5", "MPEG", "IPTC", "FITS", "SPIDER", "PDF"])
def test_formats_that_need_other_programs_or_hold_no_pictures_are_not_opened(kind):
    assert kind not in images._formats()


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        *((".jfif", "JPEG"), (".jpe", "JPEG"), (".pgm", "PPM"), (".jp2", "JPEG2000"), (".tga", "TGA"), (".mpo", "MPO")),
        *((".avif", "AVIF"), (".webp", "WEBP"), (".TIF", "TIFF"), (".ico", "ICO"), (".pcx", "PCX"), (".sgi", "SGI")),
    ],
)
def test_reads_what_pillow_reads_by_any_of_its_suffixes(tmp_path, suffix, kind):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(encoded(kind, Image.new("RGB", (16, 16), (200, 30, 60))))
    assert suffix.lower() in suffixes()
    assert no_picture(file) == ""
    assert np.abs(np.array(read_image(file).getpixel((8, 8))) - (200, 30, 60)).max() < 8


def test_a_file_without_suffix_is_told_by_its_content(tmp_path):
    for name, content in [("photo", encoded("JPEG")), ("Makefile", b"all:\n"), ("empty", b""), ("nul", bytes(64))]:
        (tmp_path / name).write_bytes(content)
        assert bool(no_picture(tmp_path / name)) == (name != "photo")


def test_says_why_a_file_is_no_picture(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert no_picture(tmp_path / "a.txt") == "'.txt' is no suffix of a picture"
    assert no_picture(tmp_path / "gone.jpg") == "a link to nothing"
    assert no_picture(tmp_path / "pipe.jpg") == "no regular file"
    with pytest.raises(UnreadableImageError, match="no regular file"):
        read_image(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_is_read_through_pillow_heif_or_its_extra_is_named(tmp_path, monkeypatch, brand):
    monkeypatch.setattr(images, "_formats", lambda: ("JPEG", "PNG"))
    content = b"\0\0\0\x18ftyp" + brand + bytes(20)
    (tmp_path / "photo").write_bytes(content)
    for source in (content, tmp_path / "photo"):
        with pytest.raises(UnreadableImageError, match=r"patchranking\[heif\]"):
            read_image(source)
    assert "patchranking[heif]" in no_picture(tmp_path / "photo")


def test_reads_heic(path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 60))).save(path)
    assert read_image(path).size == (64, 48)
    assert {".heic", ".heif"} <= suffixes()


@pytest.mark.parametrize(("size", "read"), [((500, 1), True), ((1, 500), True), ((501, 1), False), ((1, 20000), False)])
def test_a_long_thin_picture_is_refused(path, size, read):
    Image.new("L", size).save(path, "png")
    if read:
        assert read_image(path).size == size
    else:
        with pytest.raises(UnreadableImageError, match=f"{size[0]} x {size[1]} pixels: one side"):
            read_image(path)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, data):
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_it_is_decoded_whatever_pillow_allows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnreadableImageError, match=r"20000 x 20000 pixels, more than"):
        read_image(png(20000, 20000, bytes(10)))
    assert read_image(png(4, 4, bytes(10**7))).size == (4, 4)  # what follows the pixels is not kept


def test_a_huge_file_is_refused_before_it_is_read(path, monkeypatch):
    monkeypatch.setattr(images, "_MAX_BYTES", 10)
    path.write_bytes(encoded("PNG"))
    with pytest.raises(UnreadableImageError, match="more than 10"):
        read_image(path)


def exif(*entries):
    body = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    return b"Exif\0\0" + body + b"".join(struct.pack("<HHI", *own[:3]) + own[3] for own in entries) + bytes(4)


TURN = (0x112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize(
    ("metadata", "size"),
    [
        (exif(TURN), (48, 32)),
        (exif(TURN, (0x8298, 5, 1, struct.pack("<I", 8))), (48, 32)),
        (exif(TURN, (0x010F, 2, 9, struct.pack("<I", 2**31))), (48, 32)),
        (b"Exif\0\0" + exif(TURN), (48, 32)),
        (exif((0x112, 2, 4, b"six\0")), (32, 48)),
        (exif((0x112, 3, 1, struct.pack("<HH", 99, 0))), (32, 48)),
        (b"Exif\0\0no exif at all", (32, 48)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_no_metadata_loses_a_picture(metadata, size):
    for kind in ("JPEG", "WEBP", "PNG"):
        assert read_image(encoded(kind, exif=metadata)).size == size


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(10**7))),
        chunk(b"iCCP", b"key\0\0" + zlib.compress(bytes(10**7))),
        chunk(b"pHYs", b"a"),
        chunk(b"gAMA", b"a"),
        chunk(b"acTL", b"a"),
        chunk(b"tEXt", b"key\0value")[:-4] + b"torn",
    ],
)
def test_no_chunk_of_metadata_loses_a_png(path, metadata):
    content = encoded("PNG", exif=exif(TURN))
    path.write_bytes(content[:33] + metadata + content[33:])
    for source in (path, path.read_bytes()):
        assert np.array_equal(np.asarray(read_image(source))[..., 0], np.rot90(GRADIENT, -1))


def segment(kind, content, size=None):
    return b"\xff" + bytes([kind]) + struct.pack(">H", len(content) + 2 if size is None else size) + content


@pytest.mark.parametrize(
    "metadata",
    [
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\x01"),
        segment(0xE0, b"JFIF\0"),
        segment(0xE0, b"JFIF\0\x01"),
        segment(0xEE, b"Adobe\0"),
    ],
)
def test_no_torn_segment_loses_a_jpeg_nor_its_turn(path, metadata):
    content = encoded("JPEG", exif=exif(TURN))
    path.write_bytes(content[:2] + metadata + content[2:])
    for source in (path, path.read_bytes()):
        assert np.array_equal(np.asarray(read_image(source)), np.asarray(read_image(content)))


def test_a_jpeg_of_four_inks_keeps_its_colours_without_its_metadata():
    made = io.BytesIO()
    Image.new("CMYK", (16, 16), (55, 225, 195, 0)).save(made, "JPEG", quality=95)
    content = made.getvalue()
    torn = content[:2] + segment(0xE2, b"ICC_PROFILE\0") + content[2:]
    assert np.array_equal(np.asarray(read_image(torn)), np.asarray(read_image(content)))


@pytest.mark.parametrize("size", [99, 65535])
def test_a_jpeg_whose_segment_claims_too_much_is_skipped_with_a_reason(size):
    content = encoded("JPEG")
    with pytest.raises(UnreadableImageError):
        read_image(content[:2] + segment(0xE2, b"ICC_PROFILE\0", size) + content[2:])


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "x" * 300])
def test_a_name_that_no_file_has_is_unreadable(tmp_path, name):
    with pytest.raises(UnreadableImageError, match="Error"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("shortest", "size"), [(None, (400, 260)), (140, (400, 260)), (130, (200, 130)), (60, (100, 65))]
)
def test_a_jpeg_is_decoded_smaller_while_its_shorter_side_is_long_enough(tmp_path, shortest, size):
    picture = Image.linear_gradient("L").resize((400, 260)).convert("RGB")
    picture.save(tmp_path / "a.jpg")
    picture.save(tmp_path / "a.png")
    small, whole = read_sized(tmp_path / "a.jpg", shortest)
    assert (small.size, whole) == (size, (400, 260))
    assert np.abs(np.asarray(small, int) - np.asarray(picture.resize(size), int)).max() < 12
    assert read_sized(tmp_path / "a.png", shortest)[0].size == (400, 260)


@pytest.mark.parametrize(("orientation", "size"), [(1, (40, 26)), (3, (40, 26)), (6, (26, 40)), (8, (26, 40))])
def test_the_size_is_that_of_the_picture_as_it_is_turned(path, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 26)).save(path.with_suffix(".jpg"), exif=exif)
    image, whole = read_sized(path.with_suffix(".jpg"), 13)
    assert whole == size
    assert image.size == (size[0] // 2, size[1] // 2)
