"""Commands that make a checkpoint by training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import JsonOption, finish
from emqdeploy.cli.completing import completion
from emqdeploy.cli.lazy import lazily
from emqdeploy.errors import EmqError


def _classes() -> Sequence[type]:
    from emqdeploy.training.choices import option_classes
    from emqdeploy.training.settings import CommonOptions

    return [CommonOptions, *option_classes()]


def _train(
    *,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe: emqnet (default), any-precision, dedicated, adabits, truncquant, ...",
            autocompletion=completion("recipe"),
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Training method, if not the recipe's: emqnet, any-precision, dedicated, ...",
            rich_help_panel="Schedule",
            autocompletion=completion("method"),
        ),
    ] = None,
    quantizer: Annotated[
        str | None,
        typer.Option(
            help="Quantizer family, if not the recipe's: tanh, lsq, double-rounding, vertical, levels or cpq.",
            rich_help_panel="Quantization",
            autocompletion=completion("quantizer"),
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of options, with underscores for dashes; flags override it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/DATA-MODEL-NNN by default.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Continue this run exactly where it stopped; 'auto' continues --out or starts it."),
    ] = None,
    json_: JsonOption = False,
    **flags: Any,
) -> None:
    from emqdeploy.report.training_table import training_parts, training_values
    from emqdeploy.training.command import train_from_flags

    done = train_from_flags(flags | {"method": method, "quantizer": quantizer}, recipe, config, out, resume)
    if done is None:
        return
    values = training_values(done[1])
    finish(values, json_, *training_parts(*done, values))
    if done[1].wrong:
        raise EmqError(done[1].wrong)


@app.command(cls=lazily(_train, _classes, with_off=True))
def train() -> None:
    """Train one network for several children: bit-widths of weights and activations.

    Examples:
      emqdeploy train --data cifar10 --model resnet20 --bits 8,4,2a4,1a2

      emqdeploy train --data imagefolder:photos --model resnet18 --epochs 60
    """
