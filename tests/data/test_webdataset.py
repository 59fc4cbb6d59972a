from __future__ import annotations

import gzip
import io
import pickle
import tarfile

import pytest
import torch
from PIL import Image

from patchranking.data import load_data, read_batches
from patchranking.data.images import UnreadableImageError
from patchranking.errors import UserError


def picture(red, kind="png"):
    content = io.BytesIO()
    Image.new("RGB", (8, 6), (red, 0, 0)).save(content, kind)
    return content.getvalue()


def shard(path, files):
    """Writes a tar file of names with their contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(numbers):
    """Files of samples whose pictures' red level is their number, which is their class, too."""
    files = {}
    for number in numbers:
        files |= {f"{number:04d}.cls": str(number).encode(), f"{number:04d}.png": picture(number)}
    return files


def read(data):
    """Keys with red levels of the pictures that can be read, and reasons for the others."""
    skipped, found = {}, {}

    def preprocess(image):
        return torch.tensor(image.getpixel((0, 0))).view(3, 1, 1)

    for images, pixels in read_batches(data, preprocess, 2, skipped):
        found |= {data.keys[image]: level for image, level in zip(images, pixels[:, 0, 0, 0].tolist(), strict=True)}
    assert len(found) + len(skipped) == len(data)
    return found, skipped


def sentence(data):
    with pytest.raises(UserError) as caught:
        load_data(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_the_layout_of_clip_benchmark(tmp_path):
    shard(tmp_path / "pets/test/0.tar", samples([0, 2]))
    shard(tmp_path / "pets/test/1.tar", samples([1]))
    (tmp_path / "pets/classnames.txt").write_text("red fox\nbee\nant\n\n")
    (tmp_path / "pets/zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}\n")
    data = load_data(f"wds:{tmp_path}/pets/test/{{0..1}}.tar")
    assert (data.name, data.split) == ("pets", "test")
    assert data.keys == ["0/0000", "0/0002", "1/0001"]
    assert data.labels == [0, 2, 1]
    assert data.class_names == ["red fox", "bee", "ant"]
    assert data.templates == ("a photo of a {}.", "the {}")
    assert read(data) == ({"0/0000": 0, "0/0002": 2, "1/0001": 1}, {})


def test_texts_beside_the_shards_come_before_those_one_folder_above(tmp_path):
    path = shard(tmp_path / "pets/test/0.tar", samples([0, 1]))
    (tmp_path / "pets/test/classnames.txt").write_text("near_fox\n \n bee \n")
    (tmp_path / "pets/classnames.txt").write_text("far fox\nbee\n")
    data = load_data(f"wds:{path}")
    assert (data.class_names, data.labels) == (["near fox", "bee"], [0, 1])


def test_a_sample_of_a_damaged_shard_keeps_its_classes(tmp_path):
    path = shard(tmp_path / "0.tar", samples(range(5)))
    path.write_bytes(path.read_bytes()[: 6 * 2 * tarfile.BLOCKSIZE + 600])
    drawn = {}
    for seed in range(20):
        data = load_data(f"wds:{path}", limit=2, seed=seed)
        for key, label in zip(data.keys, data.labels, strict=True):
            drawn[key] = data.class_names[label] if label >= 0 else ""
    assert drawn == {"0/0000": "0", "0/0001": "1", "0/0002": "2", "0/0003": ""}


def test_without_names_classes_are_called_by_their_number(tmp_path):
    data = load_data(f"wds:{shard(tmp_path / 'flowers/val/0.tar', samples([7, 3]))}")
    assert (data.labels, data.class_names) == ([1, 0], ["3", "7"])
    assert data.templates == ("a photo of a {}, a type of flower.",)


@pytest.mark.parametrize("text", [b"", b"fox", b"-1", None])
def test_one_sample_without_a_class_makes_the_set_unlabelled(tmp_path, text):
    files = samples([0, 1]) | {"2.png": picture(2)} | ({} if text is None else {"2.cls": text})
    data = load_data(f"wds:{shard(tmp_path / 'a.tar', files)}")
    assert (data.labels, data.class_names, len(data)) == (None, [], 3)


def test_finds_the_picture_of_a_sample(tmp_path):
    files = {
        "readme.txt": b"about",
        "./deep/er/a.b.jpg": b"a mask or so",
        "./deep/er/a.txt": b"a caption",
        "./deep/er/a.JPG": picture(200, "jpeg"),
        "deep/._a.png": b"a resource fork",
        "b.webp": picture(9, "webp"),
        "b.json": b"{}",
        f"{'long' * 60}.png": picture(3),
    }
    data = load_data(f"wds:{shard(tmp_path / 'x.tar', files)}")
    assert data.keys == ["x/deep/er/a", "x/b", f"x/{'long' * 60}"]
    assert data.left_out == {
        "x/readme": "no picture in the sample",
        "x/deep/er/a.b": "a second picture of the sample 'deep/er/a'",
        "x/deep/._a.png": "hidden",
    }
    assert data.image(0).getpixel((0, 0))[0] in range(198, 203)
    assert data.image(2).getpixel((0, 0)) == (3, 0, 0)


def test_damaged_pictures_are_skipped_with_a_reason(tmp_path):
    files = samples(range(4)) | {"0001.png": b"", "0002.png": b"no picture"}
    found, skipped = read(load_data(f"wds:{shard(tmp_path / 'x.tar', files)}"))
    assert found == {"x/0000": 0, "x/0003": 3}
    assert skipped["x/0001"] == "empty file"
    assert "cannot identify" in skipped["x/0002"]


def test_a_shard_may_break_off_anywhere(tmp_path):
    path = shard(tmp_path / "x.tar", samples(range(5)))
    whole = path.read_bytes()
    block = 2 * tarfile.BLOCKSIZE  # a file: its header and less than a block
    for cut in range(128, len(whole) + 128, 128):
        path.write_bytes(whole[:cut])
        headers = min(10, (cut + tarfile.BLOCKSIZE) // block)
        torn = cut < 10 * block + tarfile.BLOCKSIZE  # the end mark is a block of zeros
        if headers == 0:
            assert "x.tar" in sentence(f"wds:{path}")
            continue
        data = load_data(f"wds:{path}")
        found, skipped = read(data)
        readable = (headers - 1) // 2 if torn else 5
        assert found == {f"x/{number:04d}": number for number in range(readable)}
        assert list(skipped) == ([f"x/{readable:04d}"] if torn else [])
        assert all("damaged" in reason for reason in skipped.values())
        assert data.labels == ([*range(readable), *[-1] * torn] if readable else None)


def test_damage_in_the_middle_of_a_shard_is_reported(tmp_path):
    path = shard(tmp_path / "x.tar", samples(range(5)))
    content = bytearray(path.read_bytes())
    start = 6 * 2 * tarfile.BLOCKSIZE
    content[start : start + 512] = bytes(range(256)) * 2
    path.write_bytes(content)
    other = shard(tmp_path / "y.tar", samples([0]))
    data = load_data(f"wds:{tmp_path}/{{x,y}}.tar")
    found, skipped = read(data)
    assert list(found) == ["x/0000", "x/0001", "y/0000"]
    assert list(skipped) == ["x/0002"]
    assert "damaged" in skipped["x/0002"]
    assert f"byte {start}" in skipped["x/0002"]
    assert data.labels == [0, 1, -1, 0]
    assert other.exists()


def test_expands_braces_and_wildcards(tmp_path, monkeypatch):
    for number in (8, 9, 10, 11):
        shard(tmp_path / f"set/s-{number:03d}.tar", {f"{number}.png": picture(number)})
    shard(tmp_path / "set/[old].tar", {"12.png": picture(12)})
    monkeypatch.chdir(tmp_path)
    for pattern, numbers in {
        "set/s-{008..010}.tar": [8, 9, 10],
        "set/s-{011,008}.tar": [11, 8],
        "set/{s-0,s-}{08..09}.tar": None,
        "set/s-*.tar": [8, 9, 10, 11],
        "set/s-00[89].tar": [8, 9],
        "set/s-0{1,0}*.tar": [10, 11, 8, 9],
        "set/[old].tar": [12],
        "set/s-{008..012}.tar": None,
        "set/s-{010..008}.tar": None,
    }.items():
        if numbers is None:
            assert "shard" in sentence(f"wds:{pattern}")
        else:
            assert list(read(load_data(f"wds:{pattern}"))[0].values()) == numbers, pattern


def test_shards_of_the_same_name_have_keys_of_their_own(tmp_path):
    for split in ("train", "val"):
        shard(tmp_path / f"set/{split}/0.tar", samples([0]))
    data = load_data(f"wds:{tmp_path}/set/{{train,val}}/0.tar")
    assert data.keys == ["train/0/0000", "val/0/0000"]
    assert (data.name, data.split) == ("set", "train+val")


def test_the_limit_is_a_seeded_sample_in_order(tmp_path):
    shard(tmp_path / "0.tar", samples(range(10)))
    shard(tmp_path / "1.tar", samples(range(10, 20)))
    name = f"wds:{tmp_path}/*.tar"
    data = load_data(name, limit=6, seed=1)
    numbers = [int(key[2:]) for key in data.keys]
    assert numbers == sorted(set(numbers)) != list(range(6))
    assert len(data) == 6
    assert data.keys == load_data(name, limit=6, seed=1).keys != load_data(name, limit=6, seed=2).keys
    assert data.labels == list(read(data)[0].values()) == numbers


def test_can_be_pickled(tmp_path):
    path = shard(tmp_path / "0.tar", samples(range(5)))
    path.write_bytes(path.read_bytes()[:-12000])
    data = load_data(f"wds:{path}")
    again = pickle.loads(pickle.dumps(data))
    assert read(again) == read(data)
    assert read(data)[1]


def test_a_shard_that_is_gone_is_unreadable(tmp_path):
    path = shard(tmp_path / "0.tar", samples(range(2)))
    data = load_data(f"wds:{path}")
    path.unlink()
    with pytest.raises(UnreadableImageError, match="FileNotFoundError"):
        data.image(0)


def test_mistakes_have_one_sentence(tmp_path):
    (tmp_path / "text.tar").write_text("no tar file " * 100)
    (tmp_path / "empty.tar").touch()
    (tmp_path / "zip.tar").write_bytes(gzip.compress(shard(tmp_path / "x.tar", samples([0])).read_bytes()))
    for name in ("text", "empty", "zip"):
        assert f"{name}.tar' cannot be read as an uncompressed tar" in sentence(f"wds:{tmp_path / name}.tar")
    assert "uncompressed tar" in sentence(f"wds:{tmp_path}")
    assert "no shard" in sentence(f"wds:{tmp_path / 'nowhere.tar'}")
    assert "twice" in sentence(f"wds:{tmp_path}/x.{{tar,tar}}")
    assert "no pictures" in sentence(f"wds:{shard(tmp_path / 'captions.tar', {'a.txt': b'a'})}")
    assert "no pictures" in sentence(f"wds:{shard(tmp_path / 'nothing.tar', {})}")
    assert "names no images" in sentence("wds:")
    (tmp_path / "classnames.txt").write_text("fox\nbee\n")
    assert "class 5" in sentence(f"wds:{shard(tmp_path / 'far.tar', samples([1, 5]))}")


def test_pictures_with_dots_in_their_names_are_samples_of_their_own(tmp_path):
    files = {
        **{
            "a.png": picture(1),
            "a.cls": b"0",
            "photo.1.png": picture(2),
            "photo.1.cls": b"1",
            "photo.2.png": picture(3),
        },
        **{"photo.2.cls": b"2", "v1.5_b.png": picture(4), "v1.5_b.cls": b"3", "s0.input.png": picture(5)},
        **{"s0.outputs.txt": b"a bird", "s0.cls": b"4"},
    }
    data = load_data(f"wds:{shard(tmp_path / 'x.tar', files)}")
    assert read(data)[0] == {"x/a": 1, "x/photo.1": 2, "x/photo.2": 3, "x/v1.5_b": 4, "x/s0.input": 5}
    assert data.labels == [0, 1, 2, 3, 4]
    assert data.left_out == {}


def test_every_member_of_a_shard_is_used_or_left_out(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in [
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("folder.png", tarfile.DIRTYPE),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        contents = {"a.png": picture(1), "a.JPE": picture(2), "b.svg": b"<svg/>", "no_suffix": b"x", "c.heic": b"x"}
        for name, content in {**contents, "__MACOSX/._a.png": b"x", "../../d.png": picture(3)}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    data = load_data(f"wds:{path}")
    assert data.keys == ["x/a", "x/c"]
    found, skipped = read(data)
    assert (found, list(skipped)) == ({"x/a": 1}, ["x/c"])
    assert data.left_out == {
        "x/link.png": "no regular file",
        "x/hard.png": "no regular file",
        "x/a.JPE": "a second picture of its sample",
        "x/b": "no picture in the sample",
        "x/no_suffix": "no picture in the sample",
        "x/__MACOSX/._a.png": "made by the system",
        "x/../../d.png": "hidden",
    }


def test_a_header_that_claims_more_than_there_is_costs_nothing(tmp_path):
    path = shard(tmp_path / "x.tar", {"a.png": picture(1), "b.png": picture(2)})
    with path.open("r+b") as file:
        file.seek(2 * tarfile.BLOCKSIZE)
        header = tarfile.TarInfo("b.png")
        header.size = 2**60
        file.write(header.tobuf(tarfile.GNU_FORMAT))
    found, skipped = read(load_data(f"wds:{path}"))
    assert found == {"x/a": 1}
    assert "damaged" in skipped["x/b"]


def test_a_range_is_spelled_out_no_further_than_to_the_first_shard_that_is_missing():
    with pytest.raises(UserError, match=r"There is no shard '0\.tar'"):
        load_data("wds:{0..99999999999999}.tar")
    with pytest.raises(UserError, match="names no shard"):
        load_data("wds:{3..2}.tar")


def test_a_shard_without_samples_is_fine_beside_others_and_one_without_content_is_named(tmp_path):
    shard(tmp_path / "0.tar", samples([0, 1]))
    shard(tmp_path / "1.tar", {})
    (tmp_path / "2.tar").touch()
    assert len(load_data(f"wds:{tmp_path}/{{0..1}}.tar")) == 2
    assert "2.tar' cannot be read" in sentence(f"wds:{tmp_path}/{{0,2}}.tar")
