"""The command that quantizes a trained model without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import DataDirOption, JsonOption, finish, parse_bits, say


@app.command()
def quantize(
    file: Annotated[Path, typer.Argument(help="Float weights: .safetensors, .pth, .pt, or a run directory.")],
    data: Annotated[
        str, typer.Option(help="Data set; its training images calibrate, its test images measure accuracy.")
    ],
    model: Annotated[str, typer.Option(help="The model that the weights belong to.")],
    bits: Annotated[str, typer.Option(help="Weight bit-widths; those between come for free.")] = "4,5,6,7,8",
    act_bits: Annotated[str, typer.Option(help="Activation bits 2..8, or 'same' to follow the weights.")] = "8",
    images: Annotated[int, typer.Option(help="Training images that calibrate.")] = 512,
    clips: Annotated[str, typer.Option(help="Activation clips: mse, max, p99.99, p99.9 or p99.")] = "mse",
    equalization: Annotated[
        str, typer.Option(help="Weights before quantization: peak (channels scaled alike) or none.")
    ] = "peak",
    statistics: Annotated[
        str, typer.Option(help="Normalization per bit-width: matched (to the float model), bits or float.")
    ] = "matched",
    bias_correction: Annotated[
        str, typer.Option(help="Biases after quantization: mean (of the float model's channels) or none.")
    ] = "mean",
    keep_8bit: Annotated[
        str, typer.Option(help="Layers that stay at 8 bits: first, last, names from `inspect`, or none.")
    ] = "first,last",
    usable_drop: Annotated[float, typer.Option(help="Points of accuracy that a usable bit-width may lose.")] = 1.0,
    data_dir: DataDirOption = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width for image files.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="torch's threads; one for tiny images, else every core.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which images calibrate.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory; runs/DATA-MODEL-NNN by default.")] = None,
    json_: JsonOption = False,
) -> None:
    """Make a multi-bit checkpoint from a trained float model and a few hundred images, without training.

    Says which bit-widths are as good as the float model; the others are worth training.

    [bold]Examples[/bold]

      emqdeploy quantize resnet20.pth --data cifar10 --model resnet20

      emqdeploy quantize resnet18.safetensors --data imagenet --data-dir ~/imagenet --model resnet18 --bits 3,4,8

      emqdeploy quantize vit.pth --data imagefolder:photos --model timm/vit_tiny_patch16_224 --images 1024
    """
    from emqdeploy.training.quantize_command import quantize_command

    options = {
        **dict(weights=str(file), data=data, model=model, activation_bits=act_bits, images=images),
        **dict(clips=clips, equalization=equalization, statistics=statistics, bias_correction=bias_correction),
        **dict(keep_8bit=keep_8bit, usable_drop=usable_drop, image_size=image_size, seed=seed),
        "data_dir": None if data_dir is None else str(data_dir),
    }
    result, parts = quantize_command(options, parse_bits(bits), out, threads, say)
    finish(result, json_, *parts)
