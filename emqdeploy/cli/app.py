"""The application that every command registers with."""

from __future__ import annotations

from typing import Annotated

import typer

from emqdeploy import __version__

app = typer.Typer(
    name="emqdeploy",
    help="""Train ONE network for every bit-width, prove it on the device's runtime, switch precision while it runs.

    A first tour, in this order; each command works as it stands:

      emqdeploy train                            # one network for 1, 2, 4 and 8 bits (embedded digits)

      emqdeploy export --bits 4 --target onnx    # a file per bit-width, proven equal to what was trained

      emqdeploy bench --device cpu               # latency, accuracy, memory, switching

    Commands without a path use the latest run in ./runs.""",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (works behind any command).")
    ] = False,
) -> None:
    """Handles what stands before a command."""
    if version:
        print(f"emqdeploy {__version__}")
        raise typer.Exit
