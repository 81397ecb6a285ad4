"""The command line: a command parses, calls one function, prints. Heavy packages load inside the commands."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from emqdeploy import __version__
from emqdeploy.errors import EmqError, UsageError

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

PathArgument = Annotated[
    Path | None, typer.Argument(help="A run directory, .emq or exported .onnx file; the latest run by default.")
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


@app.command()
def train(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="resnet8, resnet20, resnet18 or mobilenet_v2.")] = "resnet8",
    data: Annotated[str, typer.Option(help="digits, fashion-mnist, cifar10, cifar100 or imagefolder:PATH.")] = "digits",
    bits: Annotated[str, typer.Option(help="Weight bit-widths to train; those between come for free.")] = "1,2,4,8",
    act_bits: Annotated[str, typer.Option(help="Activation bits 2..8, or 'same' to follow the weights.")] = "8",
    epochs: Annotated[int, typer.Option(help="Passes of every bit-width over its images.")] = 20,
    prune_rate: Annotated[
        float, typer.Option(help="Share of the images that each bit-width leaves out, 0 to below 1.")
    ] = 0.0,
    score: Annotated[str, typer.Option(help="Importance score of the coreset: el2n or random.")] = "el2n",
    selection: Annotated[
        str, typer.Option(help="How the score picks: sampled (odds in proportion) or top.")
    ] = "sampled",
    score_epochs: Annotated[
        int | None, typer.Option(help="Epochs on all images that record the score; a tenth by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images in a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of layers.")] = 5e-4,
    augment: Annotated[
        str | None, typer.Option(help="none, shift1 or crop-flip; the data set's own by default.")
    ] = None,
    data_dir: DataDirOption = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width for an image folder.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many training images, for a quick trial.")] = None,
    adapt_norm: Annotated[
        str, typer.Option(help="Normalization statistics after training: bits (per bit-width), shared or none.")
    ] = "bits",
    partition: Annotated[str, typer.Option(help="floor (nested codes) or dorefa (baseline).")] = "floor",
    correction: Annotated[str, typer.Option(help="Weight bias correction: exact, banner or none.")] = "exact",
    correction_group: Annotated[str, typer.Option(help="Its statistics per channel or per layer.")] = "channel",
    correction_reference: Annotated[str, typer.Option(help="What it restores: w or tanh.")] = "w",
    detach_norm: Annotated[bool, typer.Option(help="Treat its norm ratio as constant in the gradient.")] = False,
    keep_8bit: Annotated[
        str, typer.Option(help="Layers that stay at 8 bits: first, last, names from `inspect`, or none.")
    ] = "first,last",
    small_groups: Annotated[
        str, typer.Option(help="Depthwise layers: pin (8 bits) or layer (shared statistics).")
    ] = "pin",
    compile: Annotated[bool, typer.Option("--compile", help="Compile each bit-width's step.")] = False,
    seed: Annotated[int, typer.Option(help="Fixes weights, batches, augmentation and coresets.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="torch's threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/DATA-MODEL-NNN by default.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run exactly where it stopped.")] = None,
    json_: JsonOption = False,
) -> None:
    """Train one network for several bit-widths.

    [bold]Examples[/bold]

      emqdeploy train

      emqdeploy train --data fashion-mnist --model resnet20 --bits 2,4,8 --prune-rate 0.8

      emqdeploy train --data imagefolder:photos --model resnet18 --epochs 60

      emqdeploy train --resume runs/digits-resnet8-001
    """
    from emqdeploy.training.command import train_command

    given = {key: value for key, value in context.params.items() if key not in ("json_", "out", "resume")}
    explicit = {key for key in given if context.get_parameter_source(key).name == "COMMANDLINE"}  # type: ignore[union-attr]
    result, parts = train_command(given, explicit, parse_bits(bits), out, resume)
    finish(result, json_, *parts)


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
    from emqdeploy import workflows
    from emqdeploy.report.terminal import export_table

    result = workflows.export(path, parse_bits(bits), target, out, allow_float, data_dir, say)
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
    from emqdeploy import workflows
    from emqdeploy.report.terminal import verify_table

    result = workflows.verify(path, parse_bits(bits), images, data_dir, say)
    finish(result, json_, verify_table(result["results"], result["images"]))
    if not result["ok"]:
        failed = ", ".join(str(entry["bits"]) for entry in result["results"] if not entry["ok"])
        raise EmqError(f"verification failed at {failed} bits; do not deploy this checkpoint")


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


@app.command()
def inspect(path: PathArgument = None, json_: JsonOption = False) -> None:
    """Show what a checkpoint holds: bit-widths, layers, effective bits per weight, sizes, provenance.

    [bold]Example[/bold]

      emqdeploy inspect runs/digits-resnet8-001/model.emq
    """
    from emqdeploy import inspection
    from emqdeploy.report.terminal import inspect_parts

    result = inspection.inspect(path)
    finish(result, json_, *inspect_parts(result))


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/demo-NNN by default.")] = None,
    json_: JsonOption = False,
) -> None:
    """See it all in three minutes: train, export, verify and bench on the embedded digits."""
    from emqdeploy import workflows
    from emqdeploy.report.terminal import demo_parts
    from emqdeploy.runs import RUNS_ROOT, next_run_path

    result = workflows.demo(out or next_run_path(RUNS_ROOT, "demo", "resnet8"), say)
    finish(result, json_, *demo_parts(result))


@app.command()
def doctor(json_: JsonOption = False) -> None:
    """Check this machine: packages, processor, what each runtime can do here."""
    from emqdeploy.doctor import examine
    from emqdeploy.report.terminal import doctor_parts

    result = examine()
    finish(result, json_, *doctor_parts(result))


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; errors are one sentence on standard error, and a traceback only with ``--debug``."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    sys.exit(_run(given, debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        code = app(arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, exit_code = _explain(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return exit_code


def _explain(error: BaseException) -> tuple[str, int]:
    """One sentence for a user, and the exit code."""
    if isinstance(error, EmqError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("emqdeploy"):
        return f'this command needs {error.name}, which is not installed; run: pip install "emqdeploy[all]"', 1
    # The argument parser's own errors, whichever click typer ships with.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        return f"{format_message().rstrip('.')}; see: emqdeploy --help", 2
    return f"{type(error).__name__}: {error}; this is a defect of emqdeploy, --debug shows where", 1


if __name__ == "__main__":
    main()
