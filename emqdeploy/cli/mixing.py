"""The command that finds widths per layer without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import JsonOption, finish, say
from emqdeploy.cli.lazy import lazily


def _classes() -> Sequence[type]:
    from emqdeploy.workflows.mixing.settings import MixSettings

    return [MixSettings]


def _mix(
    path: Annotated[Path | None, typer.Argument(help="A run or an .emq file; the latest run by default.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="What a child may cost in size, bitops or latency: size=60%, size=2MB, size=4bits or latency=8ms; may"
            " be repeated."
        ),
    ] = None,
    *,
    json_: JsonOption = False,
    **flags: Any,
) -> None:
    from emqdeploy.options import from_flags
    from emqdeploy.report.mixing import mix_parts
    from emqdeploy.workflows.mixing.mix import mix
    from emqdeploy.workflows.mixing.settings import MixSettings

    settings = MixSettings(path, **from_flags(MixSettings, flags | {"budget": ",".join(budget or ())}))
    result = mix(settings, say)
    finish(result, json_, *mix_parts(result))


@app.command(cls=lazily(_mix, _classes))
def mix() -> None:
    """Find a width for every layer of a multi-bit checkpoint under a budget, without training.

    The command measures on a few hundred images how much each layer suffers at each width in the file, and then narrows
    one layer after another, starting from the widest child. For every budget it writes a child into the file, for
    example mix-size-60, which export, verify, bench and use() take by that name.

    Budgets

      size      bytes of the child: 60% (of the widest one), 2MB, or 4bits (as many as with 4 bits everywhere)

      bitops    multiplications times weight bits times activation bits

      latency   of one image in the native kernels on this machine

    Examples:
      emqdeploy mix runs/digits-resnet8-001 --budget size=60%

      emqdeploy mix model.emq --budget size=4bits,latency=8ms --data imagefolder:photos --descent gain
    """
