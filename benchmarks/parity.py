"""Parity at every bit-width 1..8 on the whole digits test set, for a network trained with the defaults.

Fused onnxruntime against the integer reference: 0 differing codes. The torch forward and onnxruntime without
optimisation: no arg-max flip where the top two logits are more than 1 % of the logit range apart; codes that differ,
steps and flips are reported.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common import arguments, show, write
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig
from emqdeploy.workflows.verify import verify


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "parity")
    parser.add_argument("--act-bits", nargs="+", default=["8", "4", "same"])
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for setting in options.act_bits:
        activation_bits = setting if setting == "same" else int(setting)
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(activation_bits=activation_bits, epochs=2 if options.quick else 20)
            result = train(config, Path(folder) / "run", console=Console(file=io.StringIO()))
            verified = verify(result.checkpoints[0])
        for entry in verified["results"]:
            accuracy = result.accuracy[entry["bits"]]
            entry = {key: entry[key] for key in ("bits", "ok", "rungs", "integer_layers", "layers")}
            rows.append(
                {"activation_bits": activation_bits, "images": verified["images"], "accuracy": accuracy, **entry}
            )
    columns = (
        "weights",
        "activations",
        "accuracy",
        "fused: codes differ",
        "torch: codes, step, flips",
        "unfused",
        "ok",
    )
    table = []
    for row in rows:
        fused, torch, unfused = (row["rungs"][name] for name in ("onnxruntime", "torch", "unfused"))
        loose = [f"{rung['differing_codes']}, {rung['max_step_error']}, {rung['flips']}" for rung in (torch, unfused)]
        exact = f"{fused['differing_codes']} of {fused['codes']}"
        accuracy = f"{row['accuracy']:.2f} %"
        table.append((f"W{row['bits']}", f"A{row['activation_bits']}", accuracy, exact, *loose, row["ok"]))
    show(f"Parity with the integer reference, {rows[0]['images']} of digits", columns, table)
    write(options.json, "parity", options.quick, rows)


if __name__ == "__main__":
    main()
