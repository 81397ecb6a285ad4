"""Commands that turn a checkpoint into artefacts and prove them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import BitsOption, DataDirOption, JsonOption, PathArgument, finish, parse_bits, say
from emqdeploy.errors import EmqError


@app.command()
def export(
    path: PathArgument = None,
    bits: Annotated[str | None, typer.Option(help="Bit-widths to export; every trained one by default.")] = None,
    target: Annotated[str, typer.Option(help="onnx: QDQ form, standard operators, int8 storage.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="Directory; 'onnx' beside the checkpoint by default.")] = None,
    allow_float: Annotated[
        bool, typer.Option("--allow-float", help="Accept layers that the runtime computes in float.")
    ] = False,
    data_dir: DataDirOption = None,
    json_: JsonOption = False,
) -> None:
    """Export a file per bit-width and prove each equal to what was trained.

    [bold]Examples[/bold]

      emqdeploy export --bits 4 --target onnx

      emqdeploy export runs/digits-resnet8-001 --bits 2,4,8 --out deploy
    """
    from emqdeploy.report.terminal import export_table
    from emqdeploy.workflows.export import export as run

    result = run(path, parse_bits(bits), target, out, allow_float, data_dir, say)
    finish(result, json_, export_table(result["artefacts"]))


@app.command()
def verify(
    path: PathArgument = None,
    bits: BitsOption = None,
    images: Annotated[int | None, typer.Option(min=1, help="Test images; all by default.")] = None,
    data_dir: DataDirOption = None,
    json_: JsonOption = False,
) -> None:
    """Compare every way of running a checkpoint with the integer reference; exit code 1 on a difference.

    [bold]Examples[/bold]

      emqdeploy verify

      emqdeploy verify runs/digits-resnet8-001 --bits 2 --images 100
    """
    from emqdeploy.report.terminal import verify_table
    from emqdeploy.workflows.verify import verify as run

    result = run(path, parse_bits(bits), images, data_dir, say)
    finish(result, json_, verify_table(result["results"], result["images"]))
    if not result["ok"]:
        failed = ", ".join(str(entry["bits"]) for entry in result["results"] if not entry["ok"])
        raise EmqError(f"verification failed at {failed} bits; do not deploy this checkpoint")
