"""Commands that serve under a policy, and that compare what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import JsonOption, PathArgument, finish, say
from emqdeploy.cli.lazy import lazily
from emqdeploy.ending import exit_code


def _classes() -> Sequence[type]:
    from emqdeploy.serving.settings import ServeSettings

    return [ServeSettings]


def _run(
    source: Annotated[
        Path, typer.Option(help="Folder of images; folders in it that are named like classes label them.")
    ],
    path: PathArgument = None,
    *,
    table: Annotated[
        Path | None, typer.Option(help="Choose by this bench result; by default every setting is timed first.")
    ] = None,
    json_: JsonOption = False,
    **flags: Any,
) -> None:
    from emqdeploy.options import from_flags
    from emqdeploy.report.live import LiveView
    from emqdeploy.report.run_table import run_parts
    from emqdeploy.serving.serve import serve
    from emqdeploy.serving.settings import ServeSettings
    from emqdeploy.workflows.results import read_result

    settings = ServeSettings(path, source, **from_flags(ServeSettings, flags))
    with LiveView() as view:
        result = serve(settings, None if table is None else read_result(table), view, say)
    finish(result, json_, *run_parts(result))
    if result["interrupted"] and not (settings.watch or settings.repeat):  # which end in no other way
        raise typer.Exit(exit_code(1))


@app.command(cls=lazily(_run, _classes))
def run() -> None:
    """Classify a folder of images, or what arrives in it, and choose bit-width and threads by a policy meanwhile.

    A policy is a list of budgets: latency_p99=20ms,accuracy>=97 serves the most accurate setting that keeps 99 of 100
    inferences below 20 ms and never goes below 97 % (by the measured table). prefer=latency, energy or memory optimises
    something else within the budgets.

    [bold]Examples[/bold]

      emqdeploy run --source photos --policy latency_p99=20ms

      emqdeploy run runs/digits-resnet8-001 --source camera --watch --fps 30 --policy "latency_p99=5ms,accuracy>=98"

      emqdeploy run --source photos --repeat --seconds 60 --policy temperature=75C,prefer=accuracy --log run.jsonl
    """


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A bench result or report, the one to measure against.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
    html: Annotated[Path | None, typer.Option(help="Also write a page for a browser, one file, offline.")] = None,
    json_: JsonOption = False,
) -> None:
    """Put two bench results side by side, and say which differences are more than chance.

    Ratios are of B to A, with 95 % intervals from the raw samples; faster and slower mean that the interval leaves 1
    out and reaches beyond 3 %, by which two starts of the same bench may differ. Other machines, settings, software
    and disturbed runs are named.

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
