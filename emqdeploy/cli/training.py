"""Commands that make a checkpoint by training."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import JsonOption, finish
from emqdeploy.training.config import TrainConfig, flag_of, plain_type


def _with_config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command an option for every field of `TrainConfig`; one that is not given is None, so recipes count."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    options = [_option(item) for item in dataclasses.fields(TrainConfig)]
    parameters = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    command.__signature__ = inspect.Signature([*options, *parameters])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*options, *parameters]}
    return command


def _option(item: dataclasses.Field[Any]) -> inspect.Parameter:
    kind = plain_type(item.name)
    flag = flag_of(item.name)
    names = [f"--{flag}/--no-{flag}"] if kind is bool else [f"--{flag}"]
    option = typer.Option(
        *names, help=item.metadata["help"], show_default=_shown(item.default), rich_help_panel=item.metadata["panel"]
    )
    name = flag.replace("-", "_")
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _shown(default: Any) -> str | bool:
    if default is None:
        return False
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


@app.command()
@_with_config_options
def train(
    *,
    recipe: Annotated[
        str | None, typer.Option(help="emqnet (default), any-precision, dedicated, adabits or truncquant.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of options, for example RUN/config.toml; flags win over it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/DATA-MODEL-NNN by default.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Continue this run exactly where it stopped; 'auto' continues --out or starts it."),
    ] = None,
    json_: JsonOption = False,
    **flags: Any,
) -> None:
    """Train one network for several bit-widths.

    Every option below can also stand in a TOML file (--config), with underscores for dashes.

    [bold]Examples[/bold]

      emqdeploy train

      emqdeploy train --data fashion-mnist --model resnet20 --bits 2,4,8 --prune-rate 0.8

      emqdeploy train --recipe any-precision --data cifar10 --model preact-resnet20

      emqdeploy train --data imagefolder:photos --model resnet18 --pretrained resnet18.pth --epochs 60

      emqdeploy train --resume runs/digits-resnet8-001

      torchrun --nproc-per-node 4 -m emqdeploy train --data imagefolder:photos --model resnet50
    """
    from emqdeploy.training.command import parse_flags, train_command

    result = train_command(parse_flags(flags), recipe, config, out, resume)
    if result is not None:
        finish(result[0], json_, *result[1])
