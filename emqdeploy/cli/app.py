"""The application that every command registers with."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from emqdeploy import __version__
from emqdeploy.cli.help import Helpful


class Overview(TyperGroup):
    """Lists the commands in plain text: loading what draws the tables would take longer than all the rest."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Leaves out the drawing that the help of a single command has."""
        super(TyperGroup, self).format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Lists every command with its whole sentence."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(limit=200)) for name, one in self.commands.items()])


class Commands(typer.Typer):
    """Registers commands with our help."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] = Helpful, **rest: Any) -> Any:  # type: ignore[override]
        """As in the class above it."""
        return super().command(name, cls=cls, **rest)


app = Commands(
    name="emqdeploy",
    cls=Overview,
    help="""Train one network for every bit-width, prove it in the device's runtime, and switch precision while it runs.

    To try it, run these in order; each command works as it stands:

    \b
      emqdeploy train                            # 1, 2, 4 and 8 bits
      emqdeploy export --bits 4 --target onnx    # a proven file
      emqdeploy bench --device cpu               # latency, memory, switching

    Commands without a path use the latest run in ./runs.""",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works after any command.")
    ] = False,
) -> None:
    """Handles what stands before a command."""
    if version:
        print(f"emqdeploy {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit
