"""What the commands share: options, and how a result is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from emqdeploy.errors import UsageError

PathArgument = Annotated[
    Path | None, typer.Argument(help="A run, bundle, .emq or exported .onnx file; the latest run by default.")
]
BitsOption = Annotated[str | None, typer.Option("--bits", help="Bit-widths, for example 2,4,8.")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Where the data set's files lie.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads inside an operator; every core by default.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output, nothing else.")]


def parse_bits(text: str | None) -> tuple[int, ...] | None:
    """Reads ``2,4,8``."""
    if text is None:
        return None
    from emqdeploy.bits import check_bits

    try:
        bits = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--bits is {text!r}; give numbers from 1 to 8, for example --bits 2,4,8") from error
    check_bits(bits)
    return bits


def parse_names(text: str | None) -> tuple[str, ...]:
    """Reads ``single,switch``; nothing gives none."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Reads ``1,8,32``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} is {text!r}; give whole numbers, for example {option} 1,8,32") from error


def explicit_options(context: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def say(line: str) -> None:
    """Tells what is being done, on standard error."""
    print(line, file=sys.stderr, flush=True)


def finish(result: dict[str, Any], as_json: bool, *parts: Any) -> None:
    """Prints the one JSON object, or tables and lines."""
    if as_json:
        print(json.dumps(result))
        return
    from emqdeploy.report.terminal import show

    show(*parts)
