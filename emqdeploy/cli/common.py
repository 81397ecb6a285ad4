"""What the commands share: options, and how a result is printed."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from emqdeploy.cli.completing import completion
from emqdeploy.errors import plain_text

PathArgument = Annotated[
    Path | None, typer.Argument(help="A run, bundle, .emq or exported .onnx file; the latest run by default.")
]
BitsOption = Annotated[str | None, typer.Option("--bits", help="Children: 2,4,8 or 2-8, 2a4, a name, or all.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Other test images of the same classes: a data set by name, imagefolder:PATH or the .npz of a bundle.",
        autocompletion=completion("data"),
    ),
]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Folder with the data set's files.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads inside an operator; every core by default.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output, and nothing else.")]


_WIDTHS = re.compile(r"w?\d(-\d)?(a\d)?,?", re.IGNORECASE)


def lists_joined(arguments: Sequence[str]) -> list[str]:
    """Has ``--bits 4 8`` mean ``--bits 4,8``: widths behind that option belong to it, no file is called so."""
    joined: list[str] = []
    for argument in arguments:
        values = (
            len(joined) > 1 and joined[-2] == "--bits" and _WIDTHS.fullmatch(joined[-1].rstrip(",").rpartition(",")[2])
        )
        if values and _WIDTHS.fullmatch(argument):
            joined[-1] = f"{joined[-1].rstrip(',')},{argument}"
        else:
            joined.append(argument)
    return joined


def explicit_options(context: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def say(line: str) -> None:
    """Tells what is being done, on standard error."""
    print(plain_text(line), file=sys.stderr, flush=True)


def finish(result: dict[str, Any], as_json: bool, *parts: Any) -> None:
    """Prints the one JSON object, or tables and lines."""
    if as_json:
        print(json.dumps(result))
        return
    from emqdeploy.report.terminal import show

    show(*parts)
