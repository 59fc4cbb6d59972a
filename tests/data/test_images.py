from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from patchranking.data.images import UnreadableImageError, read_image, reason

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
        (whole[:20], "Error"),
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


def test_32_bit_grey_beyond_8_bits_is_scaled_from_16_and_cut_off(tmp_path):
    levels = np.array([[-5, 0, 255], [256, 65535, 70000]], np.int32)
    Image.fromarray(levels).save(tmp_path / "grey.tif")
    assert np.asarray(read_image(tmp_path / "grey.tif"))[..., 0].tolist() == [[0, 0, 0], [1, 255, 255]]
    Image.fromarray(levels[:1]).save(tmp_path / "grey.tif")
    assert np.asarray(read_image(tmp_path / "grey.tif"))[..., 0].tolist() == [[0, 0, 255]]


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
