"""Folders of pictures as people have them: nothing vanishes without a word, and a path holds wherever one works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emqdeploy.data import Dataset, load_dataset
from emqdeploy.data.folders import DEEPEST
from emqdeploy.data.naming import located
from emqdeploy.errors import UsageError


def draw(*paths: Path) -> None:
    """Writes small pictures, JPEG unless the name says otherwise."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (8, 8), (len(path.name), 0, 0))
        image.save(path, Image.registered_extensions().get(path.suffix, "JPEG"))


def load(root: Path) -> Dataset:
    """The folder as a data set."""
    return load_dataset(f"imagefolder:{root}", image_size=8)


def test_folders_in_a_class_belong_to_it(tmp_path: Path) -> None:
    """One per session or camera, beside files or without, as torchvision reads them; hidden ones are left alone."""
    for name in "ab":
        draw(*(tmp_path / name / f"{index}.png" for index in range(4)))
        draw(*(tmp_path / name / "monday" / "left" / f"{index}.png" for index in range(6)))
        draw(tmp_path / name / ".thumbnails" / "0.png")
    folder = load(tmp_path)
    assert len(folder.train) + len(folder.test) == 20
    assert np.bincount(folder.train.labels).tolist() == [8, 8]
    assert folder.notes == ()


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".dib", ".pnm", ".apng", ".webp"])
def test_every_usual_suffix_is_an_image(suffix: str, tmp_path: Path) -> None:
    """What browsers and older programs call the formats that are read."""
    draw(*(tmp_path / name / f"{index}{suffix}" for name in "ab" for index in range(5)))
    folder = load(tmp_path)
    assert len(folder.train) + len(folder.test) == 10


def test_what_is_left_out_is_one_sentence(tmp_path: Path) -> None:
    """How many files, which, and why; an empty class says what lies there instead."""
    draw(*(tmp_path / name / f"{index}.png" for name in "ab" for index in range(5)), tmp_path / "outside.png")
    for name in ("1.heic", "2.HEIC", "README", ".DS_Store"):
        (tmp_path / "a" / name).write_bytes(b"")
    (note,) = load(tmp_path).notes
    assert note.startswith(f"left out of {tmp_path}: 2 .heic, 1 without suffix (images are .apng, .bmp, ")
    assert note.endswith("), and 1 in no class folder")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.heic").write_bytes(b"")
    with pytest.raises(UsageError, match=r"/c holds no images \(.apng, .*\), but 1 .heic; add some or remove"):
        load(tmp_path)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """A link to a folder is followed, once."""
    draw(*(tmp_path / "data" / name / f"{index}.png" for name in "ab" for index in range(5)))
    draw(*(tmp_path / "more" / f"{index}.png" for index in range(5)))
    (tmp_path / "data" / "a" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "again").symlink_to(tmp_path / "data" / "a")
    folder = load(tmp_path / "data")
    assert len(folder.train) + len(folder.test) == 15


def test_folders_without_end_are_refused(tmp_path: Path) -> None:
    """A thousand inside one another exhaust the interpreter."""
    draw(*(tmp_path / name / f"{index}.png" for name in "ab" for index in range(5)))
    tmp_path.joinpath("a", *["d"] * DEEPEST).mkdir(parents=True)
    assert len(load(tmp_path).train) == 8
    tmp_path.joinpath("a", *["d"] * (DEEPEST + 1)).mkdir()
    with pytest.raises(UsageError, match=f"a holds folders more than {DEEPEST} deep; put its images higher up"):
        load(tmp_path)


def test_annotations_are_read_not_left_out(tmp_path: Path) -> None:
    """The list of labels beside the validation images of ImageNet is no file that vanished."""
    draw(*(tmp_path / "train" / name / "0.png" for name in ("n1", "n2")), tmp_path / "val" / "v.png")
    (tmp_path / "val" / "val.txt").write_text("v.png n2\n")
    folder = load_dataset("imagenet", tmp_path, 8)
    assert (folder.test.labels.tolist(), folder.notes) == ([1], ())


def test_a_name_holds_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run records of its data; names without a path stay as they are, and ``--data-dir`` wins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert located("imagefolder:data", None) == f"imagefolder:{tmp_path / 'data'}"
    assert located("imagefolder:~/data", None) == f"imagefolder:{tmp_path / 'home' / 'data'}"
    assert located("imagenet:old", Path("new")) == f"imagenet:{tmp_path / 'new'}"
    assert located("digits", Path("new")) == "digits"
    assert located("imagenet", None) == "imagenet"


def test_the_folder_given_now_wins(tmp_path: Path) -> None:
    """A checkpoint of another machine names a folder that is not here; ``--data-dir`` says where it is."""
    draw(*(tmp_path / name / f"{index}.png" for name in "ab" for index in range(5)))
    assert len(load_dataset("imagefolder:/no/such/folder", tmp_path, 8).train) == 8
    with pytest.raises(UsageError, match=r"is not a folder; give .* or say with --data-dir where it is"):
        load_dataset("imagefolder:/no/such/folder", None, 8)
