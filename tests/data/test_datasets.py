from __future__ import annotations

import os
import sys

import pytest
from PIL import Image

from patchranking.data import load_data, subset
from patchranking.errors import UserError


@pytest.fixture
def make(tmp_path):
    """Returns a function that draws pictures at paths below a folder; each has its own colour."""

    def pictures(*names, folder="set/val"):
        root = tmp_path / folder
        root.mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (index, 0, 0)).save(root / name)
        return root

    return pictures


def sentence(*arguments, **options):
    with pytest.raises(UserError) as caught:
        load_data(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sub_folders_are_classes(make):
    data = load_data(str(make("red_fox/b.png", "red_fox/a.PNG", "bee/deep/er/c.jpg", "bee/notes.txt.png")))
    assert data.keys == ["bee/deep/er/c.jpg", "bee/notes.txt.png", "red_fox/a.PNG", "red_fox/b.png"]
    assert data.class_names == ["bee", "red fox"]
    assert data.labels == [0, 0, 1, 1]
    assert (data.name, data.split, len(data)) == ("set", "val", 4)
    assert data.mask(0) is None


def test_an_underscore_and_a_space_in_the_name_of_a_class_are_the_same(make):
    data = load_data(str(make("red_fox/a.png", "red fox/b.png", "bee/c.png")))
    assert (data.keys, data.class_names) == (["bee/c.png", "red fox/b.png", "red_fox/a.png"], ["bee", "red fox"])
    assert data.labels == [0, 1, 1]


def test_other_files_are_left_out(make):
    root = make("a/b.png")
    (root / "a" / "readme.txt").write_text("no picture")
    (root / "a" / "folder.png").mkdir()
    Image.new("RGB", (1, 1)).save(root / "a" / ".hidden.png")
    (root / ".trash").mkdir()
    Image.new("RGB", (1, 1)).save(root / ".trash" / "c.png")
    data = load_data(str(root))
    assert (data.keys, data.class_names) == (["a/b.png"], ["a"])


def test_every_file_is_used_or_left_out_with_its_reason(make):
    used = (
        "a.jpg",
        "b.jpeg",
        "c.png",
        "d.webp",
        "e.bmp",
        "f.gif",
        "g.tif",
        "h.TIFF",
        "i.ppm",
        "j.jfif",
        "k.jpe",
        "l.jp2",
    )
    root = make(*used)
    for name in ("m.avif", "v.svg", "w.txt", "Thumbs.db", ".DS_Store", "no_suffix_no_picture", "x.eps"):
        (root / name).touch()
    (root / "n_no_suffix").write_bytes((root / "a.jpg").read_bytes())
    (root / "o.png").symlink_to(root / "c.png")
    (root / "gone.png").symlink_to(root / "nowhere")
    data = load_data(str(root))
    assert "".join(key[0] for key in data.keys) == "abcdefghijklmno"
    assert data.left_out == {
        ".DS_Store": "hidden",
        "Thumbs.db": "made by the system",
        "gone.png": "a link to nothing",
        "no_suffix_no_picture": "no suffix, and no picture by its content",
        "v.svg": "'.svg' is no suffix of a picture",
        "w.txt": "'.txt' is no suffix of a picture",
        "x.eps": "'.eps' is no suffix of a picture",
    }
    assert len(data) + len(data.left_out) == len(list(root.iterdir()))
    assert (subset(data, 2, 0).left_out, load_data(str(root), limit=1).left_out) == (data.left_out, data.left_out)


def test_linked_class_folders_are_followed_once_and_circles_end(make, tmp_path):
    root, other = make("cat/a.png"), make("b.png", "deep/c.png", folder="elsewhere/dogs")
    (root / "dog").symlink_to(other)
    (root / "cat" / "up").symlink_to(root)
    (other / "self").symlink_to(other)
    (root / "alias").symlink_to(root / "cat")
    data = load_data(str(root))
    assert (data.keys, data.class_names) == (["cat/a.png", "dog/b.png", "dog/deep/c.png"], ["cat", "dog"])
    assert data.left_out == {
        "alias": "the same folder as 'cat'",
        "cat/up": "the same folder as '.'",
        "dog/self": "the same folder as 'dog'",
    }


def test_folders_of_the_system_are_no_classes(make):
    system = (
        "@eaDir",
        "#recycle",
        "__MACOSX",
        "lost+found",
        "$RECYCLE.BIN",
        ".thumbnails",
        ".git",
        "System Volume Information",
    )
    root = make("cat/a.png", "cat/@eaDir/a.png/thumb.png", *(f"{name}/cat/a.png" for name in system))
    data = load_data(str(root))
    assert (data.keys, data.class_names) == (["cat/a.png"], ["cat"])
    assert set(data.left_out) == {*system, "cat/@eaDir"}
    assert set(data.left_out.values()) == {"hidden", "made by the system"}


def test_a_folder_without_pictures_says_why(make):
    root = make()
    (root / "a.docx").touch()
    assert "'a.docx' is left out: '.docx' is no suffix of a picture" in sentence(str(root))


@pytest.mark.parametrize("splits", [("train", "val"), ("Training", "test"), ("train",)])
def test_a_parent_of_splits_is_recognised(make, splits):
    root = make(*(f"{split}/cat/a.png" for split in splits))
    (note,) = load_data(str(root)).notes
    assert "look like splits" in note
    assert f"'{root / splits[0]}'" in note
    assert load_data(str(make("train/a.png", "bus/b.png", folder="vehicles"))).notes == []


IDS = ("n01440764/a.png", "n02102040/b.png")


@pytest.mark.parametrize("place", [".", ".."])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n02102040 English springer\nn01440764 tench, Tinca tinca\nn0000 other\n", ""),
        ("\ufeffn01440764,tench\nn02102040,English_springer\n", ""),
        ("tench\nEnglish springer\n", "in their order: 'n01440764' is 'tench'"),
    ],
)
def test_classnames_name_the_folders(make, place, text, said):
    root = make(*IDS)
    (root / place / "classnames.txt").write_text(text, encoding="utf-8")
    data = load_data(str(root))
    assert (data.class_names, data.labels) == (["English springer", "tench"], [1, 0])
    assert said in " ".join(data.notes)
    assert bool(data.notes) == bool(said)


@pytest.mark.parametrize("text", ["fox\n", "fox\nbee\nant\n", "n01440764 tench\nn9 bee\n"])
def test_classnames_that_do_not_fit_are_left_aside_with_a_note(make, text):
    root = make(*IDS)
    (root / "classnames.txt").write_text(text)
    data = load_data(str(root))
    assert data.class_names == ["n01440764", "n02102040"]
    assert "left aside" in data.notes[0]
    assert "no words" in data.notes[1]


def test_classnames_that_the_folders_have_already_change_nothing(make):
    root = make("bee/a.png", "red_fox/b.png")
    (root / "classnames.txt").write_text("red fox\nbee\n")
    data = load_data(str(root))
    assert (data.class_names, data.notes) == (["bee", "red fox"], [])


def test_two_folders_of_one_name_stay_two_classes(make):
    root = make(*IDS)
    (root / "classnames.txt").write_text("n01440764 crane\nn02102040 crane\n")
    data = load_data(str(root))
    assert (data.class_names, data.labels) == (["crane", "crane (2)"], [0, 1])


@pytest.mark.parametrize(
    ("names", "said"), [(("n01440764", "n02102040"), True), (("0001", "0002"), True), (("cat", "7up"), False)]
)
def test_class_names_that_are_no_words_are_said(make, names, said):
    assert any("no words" in note for note in load_data(str(make(*(f"{name}/a.png" for name in names)))).notes) == said


def test_a_folder_named_like_a_list_is_a_folder(make):
    assert load_data(str(make("a.png", folder="set/val.json"))).keys == ["a.png"]


@pytest.mark.parametrize("names", [("a.png", "b.png"), ("loose.png", "cat/a.png"), ("a.png", "b.png", "edited/a.png")])
def test_as_many_pictures_outside_a_class_as_in_one_make_the_set_unlabelled(make, names):
    data = load_data(str(make(*names)))
    assert data.labels is None
    assert data.class_names == []
    assert len(data) == len(names)
    assert any("no labels" in note for note in data.notes) == any("/" in name for name in names)


def test_a_stray_picture_beside_the_classes_is_left_out(make):
    data = load_data(str(make("loose.png", "cat/a.png", "dog/b.png")))
    assert (data.keys, data.labels) == (["cat/a.png", "dog/b.png"], [0, 1])
    assert data.left_out == {"loose.png": "a picture beside the folders of the classes"}


def test_joins_folders(make):
    first, second = make("cat/a.png", folder="x/train"), make("cat/a.png", "ant/b.png", folder="x/val")
    data = load_data(f"{first},{second}")
    assert data.keys == ["x/train/cat/a.png", "x/val/ant/b.png", "x/val/cat/a.png"]
    assert data.labels == [1, 0, 1]
    assert (data.name, data.split) == ("x+x", "train+val")


def test_joined_folders_that_share_classnames_agree_on_names_that_come_again(make):
    first = make("n02012849/a.png", "n03126707/b.png", folder="x/train")
    second = make("n03126707/a.png", folder="x/val")
    (first.parent / "classnames.txt").write_text("n02012849 crane\nn03126707 crane\n")
    data = load_data(f"{first},{second}")
    assert data.keys == ["x/train/n02012849/a.png", "x/train/n03126707/b.png", "x/val/n03126707/a.png"]
    assert (data.class_names, data.labels) == (["crane", "crane (2)"], [0, 1, 1])
    assert load_data(str(second)).class_names == ["crane (2)"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names may hold such characters there")
def test_names_that_would_end_a_line_are_escaped(make):
    data = load_data(str(make("new\nclass/a\x1b[2J.png")))
    assert (data.keys, data.class_names) == (["new\\nclass/a\\x1b[2J.png"], ["new\\nclass"])
    assert data.image(0).size == (8, 8)
    root = make("new\nclass/a.png", folder="beside")
    (root / "classnames.txt").write_text("tench")
    assert all("\n" not in note for note in load_data(str(root)).notes)


def test_folders_of_the_same_name_have_keys_of_their_own(make):
    folders = [make("c/a.png", folder=f"{place}/x/val") for place in ("here", "there", "here/x")]
    data = load_data(",".join(map(str, folders)))
    assert len(set(data.keys)) == 3
    assert data.keys[:2] == ["here/x/val/c/a.png", "there/x/val/c/a.png"]


def test_keys_do_not_depend_on_how_a_folder_is_written(make, monkeypatch):
    first, second = make("a.png", folder="x/train"), make("a.png", folder="x/val")
    monkeypatch.chdir(first.parent)
    assert load_data("train,./val").keys == load_data(f"{first},{second}").keys


def test_the_same_folder_twice_is_an_error(make):
    root = make("a.png")
    assert "twice" in sentence(f"{root},{root}/../val")


def test_a_folder_with_a_comma_in_its_name(make):
    assert load_data(str(make("a.png", folder="this,that"))).keys == ["a.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are valid text there")
def test_file_names_that_are_no_text_have_printable_keys(make):
    root = make("a.png")
    os.rename(root / "a.png", os.fsencode(root) + b"/caf\xe9.png")
    data = load_data(str(root))
    assert data.keys == ["caf\\udce9.png"]
    assert data.image(0).size == (8, 8)


def test_the_limit_is_a_seeded_sample_in_order(make):
    root = str(make(*(f"{index:02d}.png" for index in range(20))))
    every = load_data(root).keys
    sample = load_data(root, limit=6, seed=1)
    assert sample.keys == load_data(root, limit=6, seed=1).keys == sorted(sample.keys)
    assert set(sample.keys) < set(every)
    assert sample.keys != load_data(root, limit=6, seed=2).keys
    assert sample.keys != every[:6]
    assert load_data(root, limit=99).keys == every
    for index, key in enumerate(sample.keys):
        assert sample.image(index).getpixel((0, 0))[0] == int(key[:2])


def test_the_demo_is_deterministic():
    first, again = load_data("demo:val", limit=3), load_data("demo:val", limit=5)
    assert first.keys == again.keys[:3]
    assert first.labels == again.labels[:3]
    assert all(first.image(i).tobytes() == again.image(i).tobytes() for i in range(3))
    assert (first.mask(0) == again.mask(0)).all()


def test_splits_of_the_demo_share_no_scene():
    named = [load_data(f"demo:{split}", limit=2) for split in ("train", "val", "test")]
    assert len({data.image(0).tobytes() for data in named}) == 3
    assert load_data("demo", limit=1, default_split="train").keys == named[0].keys[:1]


def test_the_demo_has_500_scenes_of_the_test_split_where_nothing_else_is_said():
    assert load_data("demo").keys == [f"test/{index:07d}" for index in range(500)]


def test_mistakes_have_one_sentence(make, tmp_path):
    root = make()
    assert "no folder" in sentence(str(tmp_path / "nowhere"))
    assert "nowhere" in sentence(f"{make('a.png', folder='x/y')},{tmp_path / 'nowhere'}")
    assert "no pictures" in sentence(str(root))
    assert "splits" in sentence("demo:holiday", limit=1)
    for data in ("", ",", f"{root},"):
        assert "no name" in sentence(data)


@pytest.mark.parametrize("data", ["coco:val", "imagenet:", "wsd:data/{000..003}.tar", "HF:cifar10"])
def test_an_unknown_kind_of_data_is_named(data):
    message = sentence(data)
    assert f"'{data.partition(':')[0]}:'" in message
    assert all(form in message for form in ("demo[:split]", "hf:NAME", "wds:SHARDS", "torchvision:NAME", "folder"))


def test_folders_with_a_colon_in_their_name(make, monkeypatch):
    root = make("a.png", folder="this:that")
    other = make("b.png", folder="other")
    monkeypatch.chdir(root.parent)
    assert load_data("this:that").keys == ["a.png"]
    assert len(load_data(f"this:that,{other}")) == 2
    assert "no folder 'nowhere/this:that'" in sentence("nowhere/this:that")


@pytest.mark.parametrize("kind", ["", "wds:", "hf:", "hf:./", "torchvision:"])
@pytest.mark.parametrize(
    "name", ["x" * 300, "a\0b", "~nobody-of-this-name", "file", "x" * 300 + ".csv", "a\0b.csv", "file/a"]
)
def test_names_that_no_file_has_are_said_in_one_sentence(tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    said = sentence(kind + name)
    assert kind or name != "file" or said.startswith("'file' is no folder: give ")
    assert len(name) < 300 or kind or said.endswith("cannot be read: File name too long.")


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3", True])
def test_a_limit_is_a_whole_number_from_1_on(limit):
    assert "'limit' is a whole number, 1 or more" in sentence("demo", limit=limit)
    assert "'seed' is a whole number, 0 or more" in sentence("demo", seed=-1)


@pytest.mark.parametrize("data", ["loop", "loop,loop/a", "hf:{}/loop", "wds:{}/loop.tar", "loop.csv", "loop:train"])
def test_a_link_to_itself_is_no_data(tmp_path, data):
    for name in ("loop", "loop.tar", "loop.csv"):
        (tmp_path / name).symlink_to(name)
    where = data.format(tmp_path) if "{" in data else ",".join(str(tmp_path / part) for part in data.split(","))
    with pytest.raises(UserError):
        load_data(where)
