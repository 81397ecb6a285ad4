"""Commands that run a network here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import (
    BitsOption,
    DataDirOption,
    DataOption,
    JsonOption,
    PathArgument,
    ThreadsOption,
    explicit_options,
    finish,
    say,
)
from emqdeploy.cli.completing import completion
from emqdeploy.cli.lazy import lazily
from emqdeploy.ending import exit_code
from emqdeploy.errors import UsageError


@app.command("eval")
def evaluate(
    path: PathArgument = None,
    bits: BitsOption = None,
    runtime: Annotated[
        str,
        typer.Option(
            help="Runtime to use: onnxruntime, openvino, tensorrt, native, or torch (the reference).",
            autocompletion=completion("runtime"),
        ),
    ] = "onnxruntime",
    data: DataOption = None,
    data_dir: DataDirOption = None,
    threads: ThreadsOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="For torch: your own pkg.module:function; name it again, because no file may decide what is imported."
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Measure accuracy on the test set, in the runtime that you choose.

    A network from `quantize` is shown beside the float network that it was made from, which torch computes.

    Examples:
      emqdeploy eval

      emqdeploy eval runs/digits-resnet8-001 --bits 2,3 --runtime torch

      emqdeploy eval runs/digits-resnet8-001/bundle --runtime openvino

      emqdeploy eval bundle --data imagefolder:photos
    """
    from emqdeploy.report.terminal import accuracy_table
    from emqdeploy.runtimes import use
    from emqdeploy.workflows.evaluation import float_beside

    result = use.evaluate(path, bits, runtime, data_dir, threads, model, data)
    result |= float_beside(result, data, data_dir)
    title = f"{result['checkpoint']} on {result['images']} test images of {result['data']}, in {result['runtime']}"
    notes = [note for note in (result["unproven"], result["note"], result["float_missing"]) if note]
    floating = result["float_accuracy"]
    table = accuracy_table(title, result["accuracy"], result["trained"], result["method"], floating=floating)
    finish(result, json_, table, *notes)


def _classes() -> Sequence[type]:
    from emqdeploy.measuring.settings import BenchSettings
    from emqdeploy.remote.place import Place

    return [BenchSettings, Place]


def _bench(
    context: typer.Context,
    path: PathArgument = None,
    *,
    out: Annotated[Path | None, typer.Option(help="Also write the result as JSON, with every sample.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a report for a browser, as one file that opens offline.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Measure again with the settings of this result (.json or .html).")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the interrupted bench that was to write this file.")
    ] = None,
    json_: JsonOption = False,
    **flags: Any,
) -> None:
    from emqdeploy.files import check_writable
    from emqdeploy.measuring.bench import bench as measure
    from emqdeploy.measuring.journal import Journal
    from emqdeploy.measuring.result import save_result
    from emqdeploy.measuring.settings import BenchSettings
    from emqdeploy.options import from_flags
    from emqdeploy.remote.bench import bench_there
    from emqdeploy.remote.place import Place
    from emqdeploy.report.bench_csv import save_csv
    from emqdeploy.report.bench_table import bench_parts
    from emqdeploy.report.html.page import save_html
    from emqdeploy.workflows.results import replay_settings

    settings = BenchSettings(path=None if path is None else str(path), **from_flags(BenchSettings, flags))
    if replay is not None:
        settings = replay_settings(replay, settings, explicit_options(context))
    place = Place(**from_flags(Place, flags))
    if resume is not None and (out is not None or replay is not None or place.host is not None):
        raise UsageError("--resume goes on where it stopped, on this machine; leave out --out, --replay and --host")
    out = out or resume
    for file in (out, csv, html):
        if file is not None:
            check_writable(file)
    journal = None if out is None or place.host is not None else Journal(out)
    if journal is not None and resume is not None:
        settings = replay_settings(journal.resume(), settings, explicit_options(context), "--resume")
    result = measure(settings, say, journal) if place.host is None else bench_there(settings, place, say)
    if out is not None:
        save_result(out, result)
    if journal is not None and result["complete"]:
        journal.end()
    if csv is not None:
        save_csv(csv, result)
    if html is not None:
        save_html(html, result)
    finish(result, json_, *bench_parts(result))
    if not result["complete"]:
        raise typer.Exit(exit_code(1))


@app.command(cls=lazily(_bench, _classes))
def bench() -> None:
    """Measure latency, accuracy, size, memory, load time and switching of every bit-width on this machine.

    Bit-widths take turns, so that a drifting clock affects all alike. The result names whatever disturbed the run.

    Examples:
      emqdeploy bench --device cpu

      emqdeploy bench runs/digits-resnet8-001 --bits 2,8 --threads 1 --out bench.json

      emqdeploy bench --scenario single,offline,switch --batch 1,8 --trace round-robin

      emqdeploy bench --device jetson --host user@192.168.55.1 --out orin.json

      emqdeploy bench --scenario single,switch,adaptive --policy "latency_p99=20ms" --html report.html

      emqdeploy bench runs/digits-resnet8-001 --replay report.html --out again.json

      emqdeploy bench runs/digits-resnet8-001 --resume bench.json
    """
