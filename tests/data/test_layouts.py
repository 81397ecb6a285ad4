"""Data as people have them: a path alone, one folder, a table, a library's data set; labels or none."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from emqdeploy.data import Dataset, Preprocessing, load_dataset
from emqdeploy.data.naming import located, named
from emqdeploy.errors import EmqError, UsageError

SIZE = 8


def draw(*paths: Path) -> None:
    """Pictures whose colour says which they are, by the number in their name."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        number = int("".join(filter(str.isdigit, path.stem)) or 0)
        Image.new("RGB", (SIZE, SIZE), (number, 0, 0)).save(path)


def load(name: object, folder: Path | None = None) -> Dataset:
    """The data set at the pictures' size."""
    return load_dataset(str(name), folder, SIZE)


def by_picture(found: Dataset) -> dict[int, str]:
    """The class of every picture, by the number in its name."""
    both = {}
    for split in (found.train, found.test):
        numbers = split.images[:][:, 0, 0, 0].tolist()
        both |= {number: found.classes[label] for number, label in zip(numbers, split.labels, strict=True)}
    return both


def test_a_path_alone_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a table, what `save_to_disk` made; a registered name goes first, and holds in any directory."""
    monkeypatch.chdir(tmp_path)
    draw(*(tmp_path / "photos" / name / f"{number}.png" for name in "ab" for number in range(5)))
    (tmp_path / "list.csv").write_text("photos/a/1.png,a\n")
    (tmp_path / "digits").mkdir()
    assert [named(name) for name in ("photos", "list.csv", "digits")] == [
        "imagefolder:photos",
        "csv:list.csv",
        "digits",
    ]
    assert located("photos", None) == f"imagefolder:{tmp_path / 'photos'}"
    assert located("list.csv", Path("elsewhere")) == f"csv:{tmp_path / 'list.csv'}"
    assert located("torchvision:MNIST", None) == "torchvision:MNIST"
    assert load("photos").classes == ("a", "b")


def test_names_of_files_are_classes(tmp_path: Path) -> None:
    """Of a class and a number; what a camera calls its pictures is none, nor is a class of one."""
    draw(*(tmp_path / "pets" / f"{name}.{number}.png" for name, start in (("cat", 0), ("dog", 5)) for number in
           range(start, start + 5)))  # fmt: skip
    pets = load(tmp_path / "pets")
    assert by_picture(pets) == {number: "cat" if number < 5 else "dog" for number in range(10)}
    assert "2 classes from the names of the files: cat, dog; unlabelled:" in pets.notes[-1]
    for names in (
        ["boat_1", "boat_2"],
        ["IMG_1", "IMG_2", "DSC 1", "DSC 2"],
        ["cat_1", "dog_2", "dog_3"],
        ["b5", "b6"],
    ):
        folder = tmp_path / names[0] / str(len(names))
        draw(*(folder / f"{name}.png" for name in names))
        assert not load(folder).labelled


def test_pictures_without_labels(tmp_path: Path) -> None:
    """In one folder or in folders of a trip; a fixed fifth is set aside; asked for, whatever the folders are called."""
    draw(*(tmp_path / "trip" / "monday" / f"IMG_{number}.png" for number in range(20)))
    for found in (load(tmp_path / "trip"), load(f"unlabelled:{tmp_path / 'trip'}")):
        assert (found.labelled, found.classes) == (False, ())
        assert (len(found.train), len(found.test)) == (16, 4)
        assert set(found.train.labels) == {-1}
        assert found.notes[0] == f"20 images without labels in {tmp_path / 'trip'}: 16 to calibrate, 4 to test"
    assert len(load_dataset(str(tmp_path / "trip"), image_size=SIZE, limit=5).train) == 5
    draw(*(tmp_path / "trip" / "tuesday" / f"{number}.png" for number in range(5)))
    assert load(tmp_path / "trip").classes == ("monday", "tuesday")
    assert not load(f"unlabelled:{tmp_path / 'trip'}").labelled


@pytest.mark.parametrize(
    "table",
    [
        "{0}.png,cat\n{1}.png,dog\n{2}.png,cat\n{3}.png,dog\n{4}.png,dog\n",
        "label;file\ncat;{0}.png\ndog;{1}.png\ncat;{2}.png\ndog;{3}.png\ndog;{4}.png\n",
        "id\tbreed\n{0}\tcat\n{1}\tdog\n{2}\tcat\n{3}\tdog\n{4}\tdog\n",
        '\ufefffilename,width,class\n"{0}.png",8,cat\n{1}.png,8,dog\n{2}.png,8,cat\n{3}.png,8,dog\n{4}.png,8,dog\n',
        "image,label,split\n{0}.png,cat,train\n{1}.png,dog,train\n{2}.png,cat,val\n{3}.png,dog,val\n{4}.png,dog,train\n",
    ],
)
def test_a_table_of_paths_and_labels(table: str, tmp_path: Path) -> None:
    """With titles or without, in any order, with a split or without, suffixes or none; beside its images or not."""
    draw(*(tmp_path / "in" / f"{number}.png" for number in range(5)))
    (tmp_path / "labels.csv").write_text(table.format(*range(5)))
    found = load(tmp_path / "labels.csv", tmp_path / "in")
    assert by_picture(found) == {0: "cat", 1: "dog", 2: "cat", 3: "dog", 4: "dog"}
    if "split" in table:
        assert sorted(found.test.images[:][:, 0, 0, 0].tolist()) == [2, 3]
    (tmp_path / "in" / "labels.csv").write_text(table.format(*range(5)))
    assert by_picture(load(tmp_path / "in")) == by_picture(found)
    assert found.notes == (f"5 images and 2 classes from {tmp_path / 'labels.csv'}",)


def test_numbers_are_classes_in_their_order_and_labels_may_lack(tmp_path: Path) -> None:
    """2 comes before 10; a table of paths alone has none."""
    draw(*(tmp_path / f"{number}.png" for number in range(6)))
    (tmp_path / "t.csv").write_text("".join(f"{number}.png,{2 if number % 2 else 10}\n" for number in range(6)))
    assert load(tmp_path / "t.csv").classes == ("2", "10")
    (tmp_path / "t.csv").write_text("".join(f"{number}.png\n" for number in range(6)))
    assert not load(tmp_path / "t.csv").labelled


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            "1.png,a\n7.png,b\n8.png,b\n9.png,b\n99.png,b\n",
            r"4 of 5 files that .*t.csv names are not in .*: 7.png, 8.png, 9.png, \.\.\.;",
        ),
        ("", "t.csv is empty; write a line for each image: PATH,LABEL"),
        ("path,label\n", "t.csv has no images; mend it"),
        ("1.png,a\n2.png\n", "has fewer columns for image 2 than for those before"),
        ("1.png,\n2.png,b\n", "t.csv has no label for 1.png"),
        (
            "file,x,y2\n1.png,3,a\n2.png,4,b\n",
            "t.csv are file, x, y2; call the one with the classes label",
        ),
        ("file,label,split\n1.png,a,train\n2.png,b,fold3\n", "into the split 'fold3'; allowed: train, training, test"),
        ("file,label,split\n1.png,a,train\n2.png,b,train\n", "t.csv has no image for the test in its split column"),
    ],
)
def test_wrong_tables_are_one_sentence(table: str, says: str, tmp_path: Path) -> None:
    """How many files are missing, and the first three."""
    draw(*(tmp_path / f"{number}.png" for number in range(4)))
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(UsageError, match=says):
        load(tmp_path / "t.csv")
    with pytest.raises(UsageError, match=r"there is no table .*no.csv; check the path, or say with --data-dir"):
        load(f"csv:{tmp_path / 'no.csv'}")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe1.png,a")
    with pytest.raises(UsageError, match="is no CSV file in UTF-8"):
        load(tmp_path / "t.csv")


def test_pictures_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    """None of them, or some: how many, the first three, and why."""
    draw(*(tmp_path / f"{number}.png" for number in range(10)))
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(b"photo")
    found = load(f"unlabelled:{tmp_path}")
    with pytest.raises(EmqError, match=r"^none of 8 pictures can be read, not (\S+.png, ){3}\.\.\.; the first is"):
        found.train.images[:]
    draw(found.train.images.path(0))  # type: ignore[union-attr]
    with pytest.raises(EmqError, match=r"^only 1 of 8 pictures can be read, not"):
        found.train.images[:]


def saved(path: Path, split: bool) -> None:
    """What Hugging Face's library writes."""
    images = [Image.new("RGB", (SIZE, SIZE), (number, 0, 0)) for number in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["odd", "even"])})
    table = {"image": images, "label": [1 - number % 2 for number in range(10)]}
    made = datasets.Dataset.from_dict(table, features=features)
    parts = {"train": made.select(range(8)), "validation": made.select(range(8, 10))}
    (datasets.DatasetDict(parts) if split else made).save_to_disk(str(path))


@pytest.mark.parametrize("split", [True, False])
def test_a_data_set_of_hugging_face(split: bool, tmp_path: Path) -> None:
    """Saved to the disk, named by its path alone; with splits or without."""
    saved(tmp_path / "saved", split)
    found = load(tmp_path / "saved")
    assert by_picture(found) == {number: "odd" if number % 2 else "even" for number in range(10)}
    assert (len(found.train), len(found.test)) == (8, 2)
    assert found.train.subset(np.array([1])).images[:].shape == (1, 3, SIZE, SIZE)
    assert located(str(tmp_path / "saved"), None) == f"huggingface:{tmp_path / 'saved'}"
    seen = Preprocessing(1, SIZE, SIZE, (0.5,), (0.5,))
    assert load_dataset(str(tmp_path / "saved"), pixels=seen).test.images[:].shape == (2, 1, SIZE, SIZE)


def test_what_hugging_face_does_not_have_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched: the name may come from a file."""

    def reach(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", reach)
    with pytest.raises(EmqError, match=r"finds no images nobody/nothing in its cache \(.*\); save them once where"):
        load("huggingface:nobody/nothing")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(EmqError, match="finds no images in"):
        load(tmp_path)
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "words"))
    with pytest.raises(UsageError, match="no column of words holds images; its columns are text"):
        load(tmp_path / "words")


def test_a_data_set_of_torchvision(tmp_path: Path) -> None:
    """By the name of its class, from its own files."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        pixels = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28)
        for kind, head, values in (
            ("images-idx3", (3, count, 28, 28), pixels),
            ("labels-idx1", (1, count), np.arange(count, dtype=np.uint8) % 10),
        ):
            magic = np.array([8 << 8 | head[0], *head[1:]], ">i4").tobytes()
            (raw / f"{part}-{kind}-ubyte").write_bytes(magic + values.tobytes())
    found = load_dataset("torchvision:mnist", tmp_path, 28)
    assert found.classes[3] == "3 - three"
    assert (len(found.train), len(found.test)) == (20, 10)
    assert found.train.images[7][0, 0, 0] == found.train.labels[7] == 7
    with pytest.raises(
        EmqError, match=r"torchvision finds no MNIST in .*empty \(.*\); say with .* fetch it once: python"
    ):
        load_dataset("torchvision:MNIST", tmp_path / "empty")
    with pytest.raises(UsageError, match=r"torchvision has no data set 'MNISTS' \(did you mean 'mnist'\?\)"):
        load("torchvision:MNISTS")


@pytest.mark.parametrize("mode", ["CMYK", "P", "PA", "LA", "I;16"])
def test_pictures_of_every_kind_become_colour(mode: str, tmp_path: Path) -> None:
    """As they look."""
    values = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    suffix = "tif" if mode == "CMYK" else "png"
    if mode == "I;16":
        Image.fromarray(values.astype(np.uint16) << 8).save(tmp_path / f"a.{suffix}")
    else:
        Image.fromarray(values).convert("RGB").convert("P" if mode == "PA" else mode).save(tmp_path / f"a.{suffix}")
    pixels = Preprocessing(3, 8, 8, (0.0,) * 3, (1.0,) * 3).read(tmp_path / f"a.{suffix}").astype(int)
    assert np.abs(pixels - values).max() <= (40 if mode in ("P", "PA") else 1)


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_stand_upright(turn: int, tmp_path: Path) -> None:
    """However a phone was held: the first row of what is seen is white."""
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[0], upright[:, 0, 0] = 255, 255
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1), 7: np.rot90(upright.swapaxes(0, 1), 2), 8: np.rot90(upright, -1),
    }[turn]  # fmt: skip
    tags = Image.Exif()
    tags[0x0112] = turn
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=tags)
    seen = Preprocessing(3, 8, 8, (0.0,) * 3, (1.0,) * 3).read(tmp_path / "a.png")
    np.testing.assert_array_equal(seen.transpose(1, 2, 0), upright)
