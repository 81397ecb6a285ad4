"""Commands that serve under a policy, and that compare what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import JsonOption, finish, say
from emqdeploy.cli.lazy import lazily
from emqdeploy.ending import exit_code
from emqdeploy.errors import EmqError


def _classes() -> Sequence[type]:
    from emqdeploy.serving.settings import ServeSettings

    return [ServeSettings]


def _run(
    items: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH|IMAGE", help="The network, by default the latest run, and images."),
    ] = None,
    *,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Images, a folder of them, a video, or a camera by its number; may be repeated."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Bench result to choose by; by default every setting is timed first.")
    ] = None,
    json_: JsonOption = False,
    **flags: Any,
) -> None:
    from emqdeploy.options import from_flags
    from emqdeploy.report.live import LiveView
    from emqdeploy.report.run_table import run_parts
    from emqdeploy.serving.predict import separated
    from emqdeploy.serving.serve import serve
    from emqdeploy.serving.settings import ServeSettings
    from emqdeploy.workflows.results import read_result

    path, more = separated(items or [])
    sources = (*(source or ()), *map(str, more))
    settings = ServeSettings(path, sources, **from_flags(ServeSettings, flags))
    with LiveView() as view:
        result = serve(settings, None if table is None else read_result(table), view, say)
    finish(result, json_, *run_parts(result))
    if result["ended"] is not None:
        raise EmqError(result["ended"])
    if result["interrupted"] and not (settings.watch or settings.repeat):  # which end in no other way
        raise typer.Exit(exit_code(1))


@app.command(cls=lazily(_run, _classes))
def run() -> None:
    """Classify the pictures of a folder, a video or a camera, while a policy chooses bit-width and threads.

    A policy is a list of budgets. For example, latency_p99=20ms,accuracy>=97 serves the most accurate setting that
    keeps 99 of 100 inferences below 20 ms, and never one below 97 % (by the measured table). With prefer=latency,
    energy or memory, the policy optimises that within the budgets.

    [bold]Examples[/bold]

      emqdeploy run --source photos --policy latency_p99=20ms

      emqdeploy run runs/digits-resnet8-001 --source camera --watch --fps 30 --policy "latency_p99=5ms,accuracy>=98"

      emqdeploy run --source photos --repeat --seconds 60 --policy temperature=75C,prefer=accuracy --log run.jsonl

      emqdeploy run --source 0 --fps 10 --policy latency_p99=50ms
    """


@app.command()
def predict(
    items: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE|PATH", help="Images, folders of them, and the network, by default the latest run."
        ),
    ],
    bits: Annotated[str | None, typer.Option(help="Bit-width or child; by default the widest stored one.")] = None,
    json_: JsonOption = False,
) -> None:
    """Classify images with a network.

    You can name the network before or after the images.

    Examples:
      emqdeploy predict shoe.png

      emqdeploy predict shoe.png runs/fashion-mnist-resnet20-001 --bits 2

      emqdeploy predict runs/fashion-mnist-resnet20-001 photos --json
    """
    from emqdeploy.format.child import in_words
    from emqdeploy.report.fitting import table
    from emqdeploy.report.run_table import predictions_table
    from emqdeploy.report.units import percent
    from emqdeploy.serving.predict import predict as classify
    from emqdeploy.serving.predict import separated

    path, images = separated(items)
    result = classify(path, images, bits, report=say)
    found, at = result["images"], in_words(result["child"])
    shown: Any = predictions_table(f"{len(found)} images at {at}", found)
    if len(found) == 1:
        shown = table(f"{found[0]['image']} at {at}", "class", "confidence")
        for one in found[0]["predictions"]:
            shown.add_row(one["class"], percent(100 * one["probability"]))
    finish(result, json_, shown)
    lost = len(result["unreadable"])
    if lost:
        raise EmqError(f"{lost} of {lost + len(found)} images could not be read; replace or remove them")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="The bench result or report to compare against.")],
    b: Annotated[Path, typer.Argument(help="The other bench result or report.")],
    html: Annotated[
        Path | None, typer.Option(help="Also write a page for a browser, as one file that opens offline.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Put two bench results side by side, and say which differences are more than chance.

    Ratios are of B to A, with 95 % intervals from the raw samples. Faster and slower mean that the interval excludes 1
    and reaches beyond 3 %, by which two starts of the same bench may differ. Differences in machine, settings and
    software are named, and so are disturbed runs.

    [bold]Examples[/bold]

      emqdeploy bench --out before.json

      emqdeploy bench --replay before.json --out after.json

      emqdeploy compare before.json after.json

      emqdeploy compare laptop.html orin.json --html both.html
    """
    from emqdeploy.report.compare import compare_parts
    from emqdeploy.report.html.compare import save_comparison
    from emqdeploy.workflows.results import compare_files

    result = compare_files(a, b)
    if html is not None:
        save_comparison(html, result)
    finish(result, json_, *compare_parts(result))
