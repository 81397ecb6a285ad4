"""A policy turns a dial whose settings differ in time, and keeps a budget that 8 bits cannot keep under a load.

Our own kernels, ``--isa`` those for an instruction set, serve a network with random weights at 8 bits, 4a4, 2a4 and
1a4 on one core; how often a child answers like that of 8 bits stands for its accuracy. Then another process takes half
of that core. The budget, for 95 of 100 inferences, lies between what the fastest child and what 8 bits take beside it.
In each round the policy meets that load; then, beside the same load, 8 bits alone try to keep the same budget.

Bound: within the budget again 2 s after the load came, where 8 bits never are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from benchmarks.common import Subject, arguments, show, subject, write
from benchmarks.policy import RECOVERY_BOUND_S, agreement, judged, on_cores, serve
from emqdeploy.format.child import parse_children
from emqdeploy.measuring.choices import measured_options, thread_modes
from emqdeploy.measuring.load import load
from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime
from emqdeploy.runtimes.native_library import instruction_sets
from emqdeploy.runtimes.policy import Governed, Option

PERCENTILE = 95
DIAL = parse_children("1a4,2a4,4a4,8")


def measure(network: Subject, cores: int, quick: bool) -> list[dict[str, Any]]:
    """The rounds of one network."""
    rounds, phases, timing_s = (1, (1.0, 2.0), 0.3) if quick else (3, (3.0, 12.0), 2.0)
    checkpoint, modes = network.checkpoint_of(DIAL), thread_modes(cores)
    with contextlib.ExitStack() as opened:
        dial = {mode: opened.enter_context(NativeRuntime(checkpoint, threads=count)) for mode, count in modes.items()}
        images = network.images(8 if quick else 48)
        same = agreement(next(iter(dial.values())), images, DIAL)
        quiet = measured_options(dial, DIAL, same, images[:1], timing_s)
        with load(1, 600):
            loaded = measured_options(dial, DIAL, same, images[:1], timing_s)
        limit = float(f"{(_best(loaded) * _best(_at_eight(loaded))) ** 0.5:.3g}")
        rows = []
        for number in range(rounds):
            governed = Governed(dial, f"latency_p{PERCENTILE}={limit}ms", quiet)
            serve(governed, images, phases[0])
            with load(1, 600):
                stepped = serve(governed, images, phases[1])
                fixed = Governed(dial, f"latency_p{PERCENTILE}={limit}ms", _at_eight(quiet))
                tried = serve(fixed, images, phases[1])
            rows.append(
                {
                    "model": network.model,
                    "round": number,
                    "limit_ms": limit,
                    "quiet_ms": _tails(quiet),
                    "under_load_ms": _tails(loaded),
                    "dial": judged(stepped, limit, phases[1], same, 0.0, PERCENTILE),
                    "8 bits": judged(tried, limit, phases[1], same, 0.0, PERCENTILE),
                    "decisions": [entry.to_dict() for entry in governed.policy.log],
                }
            )
    return rows


def _tails(options: Sequence[Option]) -> dict[str, float]:
    return {str(option.setting): option.latency_ms[f"p{PERCENTILE}"] for option in options}


def _at_eight(options: Sequence[Option]) -> list[Option]:
    return [option for option in options if option.setting.child == DIAL[-1]]


def _best(options: Sequence[Option]) -> float:
    return min(_tails(options).values())


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the report."""
    parser = arguments(__doc__, "policy_dial")
    parser.add_argument("--isa", choices=instruction_sets(), default=instruction_sets()[0], help="whose kernels")
    options = parser.parse_args(argv)
    os.environ["EMQ_ISA"] = options.isa
    with on_cores(1) as cores:
        rows = measure(subject("resnet20" if options.quick else "resnet18"), cores, options.quick)
    shown = [
        (
            f"{row['model']}, round {row['round'] + 1}, {who}",
            row["limit_ms"],
            f"{100 * row[who]['share_over']:.1f} %",
            "not reached" if row[who]["recovery_s"] is None else f"{row[who]['recovery_s']:.2f} s",
            f"{row[who]['switches']}",
            ", ".join(row[who]["settings"]),
        )
        for row in rows
        for who in ("dial", "8 bits")
    ]
    columns = ("half of the core taken", "budget, p95 ms", "over it", "back after", "switches", "settings")
    show(f"A dial under a load, bound {RECOVERY_BOUND_S:g} s", columns, shown)
    write(options.json, "policy_dial", options.quick, rows, instructions=options.isa)


if __name__ == "__main__":
    main()
