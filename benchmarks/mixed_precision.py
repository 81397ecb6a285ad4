"""What widths per layer are worth after training: mixed children beside uniform ones of the same size.

A trained network (``--weights``; ResNet-20 and ResNet-56 for CIFAR-10 are here, by the names of Yerlan Idelbayev's
PyTorch networks) is quantized to 2..8 bits without training, and `emqdeploy mix` makes a child as large as each uniform
one, by each order of steps. Decisions are those of onnxruntime, which computes the deployed integers, on the same test
images; what is right says the label or, with ``--agree``, the float network.

Every file and every row is kept as it is made; a second run goes on where the first one stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.brought import public_name
from benchmarks.common import arguments, write
from emqdeploy.data import Dataset
from emqdeploy.format.child import Child, in_order
from emqdeploy.format.emq import load_checkpoint, read_card
from emqdeploy.format.runs import CHECKPOINT_FILE
from emqdeploy.options import names, numbers
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.training.mixing.descent import DESCENTS
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.given import open_given
from emqdeploy.training.posttraining.judging import Verdict, percent_right, verdict
from emqdeploy.training.posttraining.quantize import quantize
from emqdeploy.training.pretrained import load_pretrained
from emqdeploy.workflows.mixing.budgets import read_budgets
from emqdeploy.workflows.mixing.mix import mix
from emqdeploy.workflows.mixing.settings import MixSettings

WIDTHS = tuple(range(2, 9))
MIXED_AT = (3, 4, 5, 6)
"""Uniform widths whose size a mix is given."""

BATCH = 20


class Block(nn.Module):
    """Two convolutions and a shortcut of every other pixel, padded with zero channels (He et al., option A)."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if before == channels else 2
        self.more = (channels - before) // 2
        self.conv1 = nn.Conv2d(before, channels, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)``."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more))
        return F.relu(y + x)


class ResNet(nn.Module):
    """A residual network of ``6 blocks + 2`` layers for images of 32 x 32 pixels (arXiv 1512.03385, section 4.2)."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Block(before, channels), *(Block(channels, channels) for _ in range(blocks - 1)))
            for before, channels in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images ``(N, 3, 32, 32)``."""
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet20(num_classes: int) -> ResNet:
    """Three blocks in each of three stages."""
    return ResNet(3, num_classes)


def resnet56(num_classes: int) -> ResNet:
    """Nine blocks in each of three stages."""
    return ResNet(9, num_classes)


def answers(path: Path, names: Sequence[str], images: NDArray[np.float32]) -> dict[str, NDArray[np.int64]]:
    """What children of a file decide, ``(N,)`` each."""
    checkpoint, found = load_checkpoint(path), {}
    with open_runtime(checkpoint, "onnxruntime", children=[names[0]]) as runtime:
        for name in names:
            runtime.use(name)
            parts = [runtime.run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
            found[name] = np.concatenate(parts).argmax(1)
    return found


@torch.inference_mode()
def float_answers(config: QuantizeConfig, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """What the float network decides, ``(N,)``."""
    given, dataset = open_given(config)
    pre = dataset.preprocessing
    shape = (pre.channels, pre.height, pre.width)
    spec = NetworkSpec(given.model, given.classes, shape, pre.input_range, in_order(map(Child.of, WIDTHS)))
    network = spec.build(partial(load_pretrained, path=config.weights, fresh_head=False), users_code=True).eval()
    parts = [network(torch.from_numpy(images[start : start + BATCH])) for start in range(0, len(images), BATCH)]
    return torch.cat(parts).argmax(1).numpy()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "mixed_precision")
    parser.add_argument("--weights", type=Path, required=True, help="of the float network")
    parser.add_argument("--model", default="benchmarks.mixed_precision:resnet20", help="as emqdeploy quantize takes it")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--mean", default="0.485,0.456,0.406")
    parser.add_argument("--std", default="0.229,0.224,0.225")
    parser.add_argument("--agree", action="store_true", help="the float network is right, whatever the labels say")
    parser.add_argument("--images", type=int, default=256, help="training images of the search")
    parser.add_argument("--test-images", type=int, default=4000)
    parser.add_argument("--reconstruct", default="none", help="as emqdeploy quantize takes it")
    parser.add_argument("--descents", default=",".join(DESCENTS), help="orders of steps")
    parser.add_argument("--at", type=numbers, default=MIXED_AT, help="uniform widths whose size a mix is given")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of the files; what lies there is not made again"
    )
    options = parser.parse_args(argv)
    config = QuantizeConfig(
        options.weights, options.model, options.data, WIDTHS, data_dir=options.data_dir, mean=options.mean,
        std=options.std, images=options.images, test_images=options.test_images, reconstruction=options.reconstruct,
        unlabelled=options.agree,
    )  # fmt: skip
    base = options.work / "uniform" / CHECKPOINT_FILE
    if not base.exists():
        quantize(config, base.parent, print, threads=1)
    searches: dict[str, Mapping[str, Any]] = {}
    for descent in names(options.descents):
        kept = options.work / f"{descent}.json"
        if not kept.exists():
            settings = MixSettings(
                base, read_budgets(",".join(f"size={bits}bits" for bits in options.at)), data=options.data,
                data_dir=options.data_dir, images=options.images, test_images=100, points=2, descent=descent,
                out=options.work / f"{descent}.emq", plot=options.work / descent, model=options.model, threads=1,
            )  # fmt: skip
            kept.write_text(json.dumps(mix(settings, print)))
        searches[descent] = json.loads(kept.read_text())
    dataset: Dataset = open_given(config)[1]
    count = min(len(dataset.test), 200 if options.quick else options.test_images)
    images = dataset.preprocessing.normalize(dataset.test.images[:count])
    right = float_answers(config, images) if options.agree else np.asarray(dataset.test.labels[:count])
    started = time.perf_counter()
    uniform = [str(bits) for bits in WIDTHS]
    decided = {("uniform", name): found for name, found in answers(base, uniform, images).items()}
    for descent, search in searches.items():
        mixed = [row["name"] for row in search["children"]]
        found = answers(options.work / f"{descent}.emq", mixed, images)
        decided |= {(descent, name): one for name, one in found.items()}
    rows: list[dict[str, Any]] = []
    for (way, name), found in decided.items():
        search = searches[way if way != "uniform" else next(iter(searches))]
        said = next(row for row in search["uniform" if way == "uniform" else "children"] if row["name"] == name)
        bits = said["weights"] if way == "uniform" else int(said["budget"].removeprefix("size=").removesuffix("bits"))
        beside = decided["uniform", str(bits)]
        rows.append(
            {
                "way": way,
                "at_bits": bits,
                "size_bytes": said["costs"]["size"],
                "snr_db": said["snr_db"],
                "accuracy": round(percent_right(found, right), 3),
                "gained": None if way == "uniform" else _gained(verdict(found, beside, right, 0)),
                "weights": said["weights"],
            }
        )
    write(
        options.json, "mixed_precision", options.quick, rows, model=public_name(options.model),
        data=Path(options.data).name, agree=options.agree, reconstruct=options.reconstruct,
        images=options.images, test_images=count,
        search_seconds={descent: search["seconds"] for descent, search in searches.items()},
        measuring_seconds=round(time.perf_counter() - started, 1), file_bytes=base.stat().st_size,
        read_bytes={child.name: size for child, size in read_card(base)[1].items()},
    )  # fmt: skip
    print("\n".join(table(rows)))


def _gained(lost: Verdict) -> dict[str, float]:
    """Points against the uniform child of that size, with bounds of 95 % confidence each."""
    return {"points": -lost.lost, "least": -lost.most, "most": -lost.least}


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The page's table, as Markdown."""
    ways = list(dict.fromkeys(row["way"] for row in rows if row["way"] != "uniform"))
    heads = [f"`{way}`: bytes, dB, accuracy (against uniform)" for way in ways]
    lines = [f"| size of | bytes | dB | accuracy | {' | '.join(heads)} |", "|---|---|---|---|" + "---|" * len(ways)]
    for row in rows:
        if row["way"] != "uniform":
            continue
        cells = []
        for way in ways:
            one = next((other for other in rows if (other["way"], other["at_bits"]) == (way, row["at_bits"])), None)
            cells.append(
                ""
                if one is None
                else f"{one['size_bytes'] / 1e3:.1f} kB, {one['snr_db']:.1f}, {one['accuracy']:.2f} %"
                f" ({one['gained']['points']:+.2f}; {one['gained']['least']:+.2f} to {one['gained']['most']:+.2f})"
            )
        decibels = "" if row["snr_db"] > 100 else f"{row['snr_db']:.1f}"
        lines.append(
            f"| {row['at_bits']} bits | {row['size_bytes'] / 1e3:.1f} kB | {decibels} | {row['accuracy']:.2f} % |"
            f" {' | '.join(cells)} |"
        )
    return lines


if __name__ == "__main__":
    main()
