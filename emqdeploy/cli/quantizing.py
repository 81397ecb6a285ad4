"""The command that quantizes a trained model without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import JsonOption, finish, say
from emqdeploy.cli.lazy import lazily
from emqdeploy.errors import EmqError


def _classes() -> Sequence[type]:
    from emqdeploy.training.posttraining.config import QuantizeConfig

    return [QuantizeConfig]


def _quantize(
    file: Annotated[
        Path,
        typer.Argument(
            help="A float network (.onnx), float weights (.safetensors, .pth, .pt), a run directory, or the name of a"
            " network with published weights, such as timm/resnet18."
        ),
    ],
    *,
    data: Annotated[str, typer.Option(help="Images: a folder, a CSV file, or a data set by name.")],
    model: Annotated[
        str | None, typer.Option(help="Model that the weights belong to; an .onnx file needs none.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch; by default one for tiny images, else one per core.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory; runs/DATA-MODEL-NNN by default.")] = None,
    json_: JsonOption = False,
    **flags: Any,
) -> None:
    from emqdeploy.format.runs import RUNS_ROOT, next_run_path
    from emqdeploy.options import from_flags
    from emqdeploy.report.quantize_values import quantize_parts, quantize_values
    from emqdeploy.training.posttraining.config import QuantizeConfig
    from emqdeploy.training.posttraining.quantize import advice, quantize

    config = QuantizeConfig(file, model, data, **from_flags(QuantizeConfig, flags))
    result = quantize(config, out or next_run_path(RUNS_ROOT, data, model or file.stem), say, threads)
    hint = advice(config, result, flags["children"]) if result.wrong is None else ""
    finish(quantize_values(config, result), json_, *quantize_parts(config, result, hint))
    if result.wrong is not None and result.checkpoint is None:
        raise EmqError(result.wrong)
    if result.wrong is not None:
        say(f"accepted: {result.wrong}")


@app.command(cls=lazily(_quantize, _classes, with_off=True))
def quantize() -> None:
    """Make a multi-bit checkpoint from a trained float model and a few hundred images, without training.

    The command says which children are as good as the float model; the others are worth training. If an 8-bit child
    does not answer like the float model, nothing is written, the message names the layer where that begins, and the
    exit code is 1.

    [bold]Examples[/bold]

      emqdeploy quantize mobilenet.onnx --data imagefolder:photos

      emqdeploy quantize resnet20.pth --data cifar10 --model resnet20

      emqdeploy quantize resnet18.safetensors --data imagenet --data-dir ~/imagenet --model resnet18 --bits 3,4,8

      emqdeploy quantize model.pth --data cifar10 --model resnet20 --bits 2-8,4a4 --children mixed.toml

      emqdeploy quantize vit.pth --data imagefolder:photos --model timm/vit_tiny_patch16_224 --images 1024
    """
