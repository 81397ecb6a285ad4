"""Commands that show: what a file holds, what this machine can do, what it all looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import JsonOption, PathArgument, finish, say


@app.command()
def inspect(path: PathArgument = None, json_: JsonOption = False) -> None:
    """Show what a checkpoint holds: bit-widths, layers, effective bits per weight, sizes and provenance.

    Example:
      emqdeploy inspect runs/digits-resnet8-001/model.emq
    """
    from emqdeploy.report.terminal import inspect_parts
    from emqdeploy.workflows import inspection

    result = inspection.inspect(path)
    finish(result, json_, *inspect_parts(result))


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/demo-NNN by default.")] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Show instead a network that gets better while it arrives over a slow connection."
        ),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """See it all in a minute: train, export, verify and bench on the embedded digits."""
    from emqdeploy.format.runs import RUNS_ROOT, next_run_path

    folder = out or next_run_path(RUNS_ROOT, "demo", "resnet8")
    if stream:
        from emqdeploy.report.delivery import stream_parts
        from emqdeploy.workflows.delivery import stream_demo

        result = stream_demo(folder, say)
        finish(result, json_, *stream_parts(result))
        return
    from emqdeploy.report.terminal import demo_parts
    from emqdeploy.workflows.demo import demo as run

    result = run(folder, say)
    finish(result, json_, *demo_parts(result))


@app.command()
def doctor(json_: JsonOption = False) -> None:
    """Check this machine: packages, processor, and what each runtime can do here."""
    from emqdeploy.report.terminal import doctor_parts
    from emqdeploy.workflows.doctor import examine

    result = examine()
    finish(result, json_, *doctor_parts(result))


@app.command()
def plot(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Run directories, by default the latest; the curves of several share one picture."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Path of the pictures without suffix; RUN/accuracy by default.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Draw accuracy per bit-width over sample passes and over time, as PNG and SVG, even while a run goes on.

    Examples:
      emqdeploy plot

      emqdeploy plot runs/digits-resnet8-001 runs/digits-resnet8-002 --out compared
    """
    from emqdeploy.format.runs import find_checkpoint
    from emqdeploy.report.curves import plot_runs

    result = plot_runs(runs or [find_checkpoint(None).parent], out)
    finish(result, json_, *(f"wrote {file}" for file in result["files"]))


@app.command()
def labels(
    path: Annotated[Path | None, typer.Argument(help="A run of train --clean ensemble; the latest by default.")] = None,
    count: Annotated[int, typer.Option(help="How many of the most suspicious images to list.", min=1, max=1000)] = 100,
    out: Annotated[Path | None, typer.Option(help="Page for a browser; labels.html in the run by default.")] = None,
    json_: JsonOption = False,
) -> None:
    """List the training images whose labels the network believes least, as a page with thumbnails.

    Examples:
      emqdeploy train --data imagefolder:photos --clean ensemble

      emqdeploy labels --count 200
    """
    from emqdeploy.report.labels import labels_parts, save_labels
    from emqdeploy.workflows.labels import labels as find

    result = find(path, count)
    page = out or Path(result["run"]) / "labels.html"
    save_labels(page, result)
    finish({**result, "page": str(page)}, json_, *labels_parts(result, page))
