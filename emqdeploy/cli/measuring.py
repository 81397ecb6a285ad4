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
    explicit_options,
    finish,
    parse_bits,
    parse_names,
    parse_numbers,
    say,
)


@app.command("eval")
def evaluate(
    path: PathArgument = None,
    bits: BitsOption = None,
    runtime: Annotated[
        str, typer.Option(help="onnxruntime, openvino, tensorrt, or torch (the reference).")
    ] = "onnxruntime",
    data_dir: DataDirOption = None,
    threads: ThreadsOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure accuracy on the test set, in a runtime.

    [bold]Examples[/bold]

      emqdeploy eval

      emqdeploy eval runs/digits-resnet8-001 --bits 2,3 --runtime torch

      emqdeploy eval runs/digits-resnet8-001/bundle --runtime openvino
    """
    from emqdeploy.report.terminal import accuracy_table
    from emqdeploy.runtimes import use

    result = use.evaluate(path, parse_bits(bits), runtime, data_dir, threads)
    title = f"{result['checkpoint']} on {result['images']} test images of {result['data']}, in {result['runtime']}"
    finish(result, json_, accuracy_table(title, result["accuracy"], result["trained_bits"], result["method"]))


@app.command()
def bench(
    context: typer.Context,
    path: PathArgument = None,
    bits: BitsOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or jetson.")] = "auto",
    runtime: Annotated[str | None, typer.Option(help="Runtimes to compare, for example onnxruntime,openvino.")] = None,
    scenario: Annotated[str, typer.Option(help="Scenarios in order: single, offline, switch, ...")] = "single,switch",
    samples: Annotated[int | None, typer.Option(min=1, help="Timed inferences per row.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Timed seconds per row, instead of a count.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes of the offline scenario.")] = "1,4,16,64",
    switches: Annotated[int, typer.Option(min=1, help="Timed switches.")] = 200,
    trace: Annotated[str, typer.Option(help="random, round-robin, or a file with one bit-width a line.")] = "random",
    data: Annotated[str | None, typer.Option(help="Data set for accuracy; the network's own by default.")] = None,
    data_dir: DataDirOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many test images.")] = None,
    threads: ThreadsOption = None,
    energy: Annotated[str, typer.Option(help="auto, none, or the source to read.")] = "auto",
    energy_seconds: Annotated[float, typer.Option(help="How long each row runs for its energy.")] = 3.0,
    lock_clocks: Annotated[
        bool,
        typer.Option("--lock-clocks", help="Fix a Jetson's clocks for the run, then release them."),
    ] = False,
    host: Annotated[str | None, typer.Option(help="Measure there over ssh, for example user@192.168.55.1.")] = None,
    ssh: Annotated[str, typer.Option(help="The ssh command, with options.")] = "ssh",
    host_python: Annotated[str | None, typer.Option(help="The host's Python; its python3 by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result as JSON, every sample in it.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a report for a browser, one file, offline.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="Budgets of the adaptive scenario, such as latency_p99=20ms,accuracy>=97.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Measure again with the settings of this result (.json or .html).")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Measure latency, accuracy, size, memory, load time and switching of every bit-width on this machine.

    Bit-widths take turns, so that a drifting clock hits all alike; whatever disturbed the run is named.

    [bold]Examples[/bold]

      emqdeploy bench --device cpu

      emqdeploy bench runs/digits-resnet8-001 --bits 2,8 --threads 1 --out bench.json

      emqdeploy bench --scenario single,offline,switch --batch 1,8 --trace round-robin

      emqdeploy bench --device jetson --host user@192.168.55.1 --out orin.json

      emqdeploy bench --scenario single,switch,adaptive --policy "latency_p99=20ms" --html report.html

      emqdeploy bench --replay report.html --out again.json
    """
    from emqdeploy.measuring.bench import bench as measure
    from emqdeploy.measuring.result import save_result
    from emqdeploy.measuring.settings import BenchSettings
    from emqdeploy.report.bench_csv import save_csv
    from emqdeploy.report.bench_table import bench_parts
    from emqdeploy.report.html.page import save_html
    from emqdeploy.workflows.results import replay_settings

    settings = BenchSettings(
        path=None if path is None else str(path),
        bits=parse_bits(bits),
        runtimes=parse_names(runtime),
        device=device,
        scenarios=parse_names(scenario),
        samples=samples,
        seconds=seconds,
        batches=parse_numbers("--batch", batch),
        switches=switches,
        trace=trace,
        data=data,
        data_dir=None if data_dir is None else str(data_dir),
        limit=limit,
        threads=threads,
        energy=energy,
        energy_seconds=energy_seconds,
        lock_clocks=lock_clocks,
        host=host,
        ssh=ssh,
        host_python=host_python,
        policy=policy,
    )
    if replay is not None:
        settings = replay_settings(replay, settings.path, explicit_options(context))
    result = measure(settings, say)
    if out is not None:
        save_result(out, result)
    if csv is not None:
        save_csv(csv, result)
    if html is not None:
        save_html(html, result)
    finish(result, json_, *bench_parts(result))
    if not result["complete"]:
        raise typer.Exit(130)


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
    from emqdeploy.runtimes import use

    result = use.predict(path, image, bits)
    rows = table(f"{result['image']} at {result['bits']} bits", "class", "probability")
    for entry in result["predictions"]:
        rows.add_row(entry["class"], percent(100 * entry["probability"]))
    finish(result, json_, rows)
