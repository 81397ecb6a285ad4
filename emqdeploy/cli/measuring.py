"""Commands that run a network here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import (
    BitsOption,
    DataDirOption,
    JsonOption,
    PathArgument,
    ThreadsOption,
    finish,
    parse_bits,
    say,
)


@app.command("eval")
def evaluate(
    path: PathArgument = None,
    bits: BitsOption = None,
    runtime: Annotated[str, typer.Option(help="onnxruntime or torch (the reference).")] = "onnxruntime",
    data_dir: DataDirOption = None,
    threads: ThreadsOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure accuracy on the test set, in a runtime.

    [bold]Examples[/bold]

      emqdeploy eval

      emqdeploy eval runs/digits-resnet8-001 --bits 2,3 --runtime torch
    """
    from emqdeploy.report.terminal import accuracy_table
    from emqdeploy.runtimes import bench as measurements

    result = measurements.evaluate(path, parse_bits(bits), runtime, data_dir, threads)
    title = f"{result['checkpoint']} on {result['images']} test images of {result['data']}, in {result['runtime']}"
    finish(result, json_, accuracy_table(title, result["accuracy"], result["trained_bits"]))


@app.command()
def bench(
    path: PathArgument = None,
    bits: BitsOption = None,
    device: Annotated[str, typer.Option(help="cpu or auto.")] = "auto",
    samples: Annotated[int, typer.Option(min=10, help="Timed inferences per bit-width.")] = 300,
    switches: Annotated[int, typer.Option(min=10, help="Timed switches.")] = 1000,
    data_dir: DataDirOption = None,
    threads: ThreadsOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure latency, accuracy, size, memory and switching of every bit-width on this machine.

    Bit-widths take turns, so that a drifting clock hits all alike. Batch 1; times are of the whole call.

    [bold]Examples[/bold]

      emqdeploy bench --device cpu

      emqdeploy bench runs/digits-resnet8-001 --bits 2,8 --threads 1 --json
    """
    from emqdeploy.report.terminal import bench_table
    from emqdeploy.runtimes import bench as measurements

    result = measurements.bench(path, parse_bits(bits), device, samples, switches, threads, data_dir, say)
    title = f"{result['checkpoint']} in {result['runtime']} on {result['environment']['cpu']}, batch 1"
    finish(result, json_, bench_table(result["rows"], title))


@app.command()
def predict(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    path: PathArgument = None,
    bits: Annotated[int | None, typer.Option(help="Bit-width; the highest stored one by default.")] = None,
    json_: JsonOption = False,
) -> None:
    """Classify one image.

    [bold]Examples[/bold]

      emqdeploy predict shoe.png

      emqdeploy predict shoe.png runs/fashion-mnist-resnet20-001 --bits 2
    """
    from emqdeploy.report.terminal import percent, table
    from emqdeploy.runtimes import bench as measurements

    result = measurements.predict(path, image, bits)
    rows = table(f"{result['image']} at {result['bits']} bits", "class", "probability")
    for entry in result["predictions"]:
        rows.add_row(entry["class"], percent(100 * entry["probability"]))
    finish(result, json_, rows)
