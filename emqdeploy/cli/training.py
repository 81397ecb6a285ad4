"""Commands that make a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import DataDirOption, JsonOption, finish, parse_bits


@app.command()
def train(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            help="resnet8, resnet20, preact-resnet20, vit-micro, resnet18, mobilenet_v2, vit_b_16, ..., timm/NAME, or"
            " your own pkg.module:function."
        ),
    ] = "resnet8",
    data: Annotated[str, typer.Option(help="digits, fashion-mnist, cifar10, cifar100 or imagefolder:PATH.")] = "digits",
    bits: Annotated[str, typer.Option(help="Weight bit-widths to train; those between come for free.")] = "1,2,4,8",
    act_bits: Annotated[str, typer.Option(help="Activation bits 2..8, or 'same' to follow the weights.")] = "8",
    epochs: Annotated[int, typer.Option(help="Passes of every bit-width over its images.")] = 20,
    prune_rate: Annotated[
        float, typer.Option(help="Share of the images that each bit-width leaves out, 0 to below 1.")
    ] = 0.0,
    score: Annotated[str, typer.Option(help="Importance score of the coreset: el2n or random.")] = "el2n",
    selection: Annotated[
        str, typer.Option(help="How the score picks: sampled (odds in proportion) or top.")
    ] = "sampled",
    score_epochs: Annotated[
        int | None, typer.Option(help="Epochs on all images that record the score; a tenth by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images in a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of layers.")] = 5e-4,
    augment: Annotated[
        str | None, typer.Option(help="none, shift1 or crop-flip; the data set's own by default.")
    ] = None,
    data_dir: DataDirOption = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width for an image folder.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many training images, for a quick trial.")] = None,
    adapt_norm: Annotated[
        str, typer.Option(help="Normalization statistics after training: bits (per bit-width), shared or none.")
    ] = "bits",
    partition: Annotated[str, typer.Option(help="floor (nested codes) or dorefa (baseline).")] = "floor",
    correction: Annotated[str, typer.Option(help="Weight bias correction: exact, banner or none.")] = "exact",
    correction_group: Annotated[str, typer.Option(help="Its statistics per channel or per layer.")] = "channel",
    correction_reference: Annotated[str, typer.Option(help="What it restores: w or tanh.")] = "w",
    detach_norm: Annotated[bool, typer.Option(help="Treat its norm ratio as constant in the gradient.")] = False,
    keep_8bit: Annotated[
        str, typer.Option(help="Layers that stay at 8 bits: first, last, names from `inspect`, or none.")
    ] = "first,last",
    small_groups: Annotated[
        str, typer.Option(help="Depthwise layers: pin (8 bits) or layer (shared statistics).")
    ] = "pin",
    compile: Annotated[bool, typer.Option("--compile", help="Compile each bit-width's step.")] = False,
    seed: Annotated[int, typer.Option(help="Fixes weights, batches, augmentation and coresets.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="torch's threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/DATA-MODEL-NNN by default.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run exactly where it stopped.")] = None,
    json_: JsonOption = False,
) -> None:
    """Train one network for several bit-widths.

    [bold]Examples[/bold]

      emqdeploy train

      emqdeploy train --data fashion-mnist --model resnet20 --bits 2,4,8 --prune-rate 0.8

      emqdeploy train --data imagefolder:photos --model resnet18 --epochs 60

      emqdeploy train --resume runs/digits-resnet8-001
    """
    from emqdeploy.training.command import train_command

    given = {key: value for key, value in context.params.items() if key not in ("json_", "out", "resume")}
    explicit = {key for key in given if context.get_parameter_source(key).name == "COMMANDLINE"}  # type: ignore[union-attr]
    result, parts = train_command(given, explicit, parse_bits(bits), out, resume)
    finish(result, json_, *parts)
