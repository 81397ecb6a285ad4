"""ImageNet and Tiny ImageNet in the layouts in which they are distributed, with real JPEG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emqdeploy.data import load_dataset
from emqdeploy.errors import EmqError, UsageError

pytestmark = pytest.mark.usefixtures("no_data_sets")

SYNSETS = ["n01443537", "n02012849", "n03126707"]
WORDS = "n01443537\tgoldfish, Carassius auratus\nn02012849\tcrane\nn03126707\tcrane\nn99999999\tunused\n"


def picture(path: Path, shade: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> None:
    """Write one JPEG of one shade."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade if mode == "L" else (shade,) * len(mode)).save(path)


def write_tiny(root: Path) -> None:
    """Write a small Tiny ImageNet: three classes, four training and two validation images each."""
    for number, synset in enumerate(SYNSETS):
        for image in range(4):
            mode = "L" if image == 3 else "RGB"  # there are grey files among the real ones
            picture(root / "train" / synset / "images" / f"{synset}_{image}.JPEG", 10 * (number + 1) + image, mode=mode)
        (root / "train" / synset / f"{synset}_boxes.txt").write_text(f"{synset}_0.JPEG\t0\t10\t63\t58\n")
    lines = []
    for image in range(6):
        picture(root / "val" / "images" / f"val_{image}.JPEG", 100 + image)
        lines.append(f"val_{image}.JPEG\t{SYNSETS[(image + 1) % 3]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    picture(root / "test" / "images" / "test_0.JPEG", 5)
    (root / "wnids.txt").write_text("\n".join(reversed(SYNSETS)))
    (root / "words.txt").write_text(WORDS)


@pytest.mark.parametrize("place", ["d", "d/tiny-imagenet-200"])
def test_tinyimagenet(tmp_path: Path, place: str) -> None:
    """Classes in the order of their synsets, whatever the list's; labels of the test images from the annotations."""
    write_tiny(tmp_path / place)
    tiny = load_dataset("tinyimagenet", data_dir=tmp_path / "d")
    assert tiny.classes == ("goldfish", "crane (n02012849)", "crane (n03126707)")
    assert tiny.train.images.shape == (12, 3, 64, 64)
    assert np.bincount(tiny.train.labels).tolist() == [4, 4, 4]
    np.testing.assert_allclose(tiny.train.images[:].mean((1, 2, 3)) // 10, tiny.train.labels + 1)
    assert tiny.test.labels.tolist() == [1, 2, 0, 1, 2, 0]
    np.testing.assert_allclose(tiny.test.images[:].mean((1, 2, 3)), np.arange(100, 106))
    assert tiny.augmentation == "crop-flip"
    assert load_dataset(f"tinyimagenet:{tmp_path / place}", image_size=96).augmentation == "resized-crop-flip"


def test_broken_tinyimagenet(tmp_path: Path) -> None:
    """What an interrupted unpacking leaves is named."""
    with pytest.raises(
        EmqError, match=r"not in .*no wnids.txt there.*unpack tiny-imagenet-200.zip and give .*--data-dir"
    ):
        load_dataset("tinyimagenet", data_dir=tmp_path)
    write_tiny(tmp_path)
    annotations = tmp_path / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    for content, message in (
        (whole.partition("\n")[2], "says nothing about val/images/val_0.JPEG"),
        (whole + "val_9.JPEG\tn00000000\t1\t2\t3\t4\n", "names none of the 3 training classes"),
        ("", "says nothing about"),
    ):
        annotations.write_text(content)
        with pytest.raises(EmqError, match=f"val_annotations.txt is damaged .*{message}"):
            load_dataset("tinyimagenet", data_dir=tmp_path)
    annotations.unlink()
    with pytest.raises(EmqError, match=r"there is no val_annotations.txt"):
        load_dataset("tinyimagenet", data_dir=tmp_path)
    annotations.write_text(whole)
    for file in (tmp_path / "train" / SYNSETS[1] / "images").iterdir():
        file.unlink()
    with pytest.raises(UsageError, match=f"train/{SYNSETS[1]}/images holds no images"):
        load_dataset("tinyimagenet", data_dir=tmp_path)
    (tmp_path / "train" / SYNSETS[1] / "images").rmdir()
    with pytest.raises(EmqError, match=f"train/{SYNSETS[1]}/images is missing; unpack"):
        load_dataset("tinyimagenet", data_dir=tmp_path)
    (tmp_path / "wnids.txt").write_text("")
    with pytest.raises(EmqError, match=r"wnids.txt is damaged"):
        load_dataset("tinyimagenet", data_dir=tmp_path)


def write_imagenet_train(root: Path) -> None:
    """Write two training images of each class, of unlike sizes, one in CMYK as a few of the real ones are."""
    for number, synset in enumerate(SYNSETS):
        picture(root / "train" / synset / f"{synset}_1.JPEG", 50 * number + 5, (300, 260))
        picture(
            root / "train" / synset / f"{synset}_2.JPEG", 50 * number + 5, (250, 400), "CMYK" if number == 1 else "L"
        )


def write_flat_val(root: Path) -> list[str]:
    """Write validation images without folders; returns their names."""
    names = [f"ILSVRC2012_val_0000000{number}" for number in range(1, 5)]
    for number, name in enumerate(names):
        picture(root / "val" / f"{name}.JPEG", 60 + number, (320, 240))
    return names


def test_imagenet_with_folders(tmp_path: Path) -> None:
    """The layout that training scripts use: a folder per class on both sides, at 224 pixels by default."""
    write_imagenet_train(tmp_path / "imagenet")
    for number, synset in enumerate(SYNSETS):
        picture(tmp_path / "imagenet" / "val" / synset / "a.JPEG", 70 + number, (320, 240))
    (tmp_path / "imagenet" / "synset_words.txt").write_text(WORDS.replace("\t", " "))
    data = load_dataset("imagenet", data_dir=tmp_path)
    assert data.classes[0] == "goldfish"
    assert data.train.images.shape == (6, 3, 224, 224)
    assert sorted(data.test.labels) == [0, 1, 2]
    np.testing.assert_allclose(data.test.images[:].mean((1, 2, 3)).round(), 70 + data.test.labels)
    assert data.augmentation == "resized-crop-flip"
    assert len(load_dataset("imagenet", data_dir=tmp_path, limit=3, image_size=64).train) == 3


@pytest.mark.parametrize("style", ["kaggle", "tabs", "numbers"])
def test_imagenet_with_a_flat_validation_folder(tmp_path: Path, style: str) -> None:
    """Annotations as Kaggle distributes them, as Tiny ImageNet has them, and with class numbers."""
    root = tmp_path / "ILSVRC/Data/CLS-LOC" if style == "kaggle" else tmp_path
    write_imagenet_train(root)
    names = write_flat_val(root)
    labels = [2, 0, 1, 2]
    if style == "kaggle":
        lines = [f"{name},{SYNSETS[label]} 85 1 499 272 " for name, label in zip(names, labels, strict=True)]
        (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]))
        (tmp_path / "LOC_synset_mapping.txt").write_text(WORDS.replace("\t", " "))
    elif style == "tabs":
        lines = [f"{name}.JPEG\t{SYNSETS[label]}\t1\t2" for name, label in zip(names, labels, strict=True)]
        (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    else:
        (root / "val.txt").write_text(
            "".join(f"{name}.JPEG {label}\n" for name, label in zip(names, labels, strict=True))
        )
    data = load_dataset("imagenet", data_dir=tmp_path)
    assert data.test.labels.tolist() == labels
    assert data.classes[0] == ("goldfish" if style == "kaggle" else SYNSETS[0])


def test_broken_imagenet(tmp_path: Path) -> None:
    """Each part that is missing is named, with what to do."""
    with pytest.raises(EmqError, match=r"imagenet is not in .*no train there.*image-net.org.*--data-dir"):
        load_dataset("imagenet", data_dir=tmp_path)
    write_imagenet_train(tmp_path)
    with pytest.raises(UsageError, match="has no val/"):
        load_dataset("imagenet", data_dir=tmp_path)
    write_flat_val(tmp_path)
    with pytest.raises(
        EmqError, match=r"there is no val_annotations.txt or .*LOC_val_solution.csv.*IMAGE CLASS a line"
    ):
        load_dataset("imagenet", data_dir=tmp_path)
