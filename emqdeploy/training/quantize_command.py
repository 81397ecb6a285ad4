"""`emqdeploy quantize`: from parsed flags to a checkpoint, and what to tell about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.progress import Report
from emqdeploy.report.terminal import quantize_table
from emqdeploy.runs import RUNS_ROOT, next_run_path
from emqdeploy.training.quantize import QuantizeConfig, QuantizeResult, quantize


def quantize_command(
    options: dict[str, Any], bits: tuple[int, ...] | None, out: Path | None, threads: int | None, report: Report
) -> tuple[dict[str, Any], list[Any]]:
    """Quantizes; returns the JSON object and what to print.

    Args:
        options: fields of `QuantizeConfig`; activation bits and kept layers as the user wrote them.
        bits: the parsed bit-widths.
        out: directory of the checkpoint, or None for the default one.
        threads: torch's threads.
        report: receives progress.
    """
    act_bits, kept = options["activation_bits"], options["keep_8bit"]
    if act_bits != "same" and not act_bits.isdecimal():
        raise UsageError(f"--act-bits is {act_bits!r}; allowed: 2..8, or 'same' to follow the weight bits")
    config = QuantizeConfig(
        **options
        | {
            "bits": bits,
            "activation_bits": act_bits if act_bits == "same" else int(act_bits),
            "keep_8bit": () if kept == "none" else tuple(part.strip() for part in kept.split(",")),
        }
    )
    result = quantize(config, out or next_run_path(RUNS_ROOT, config.data, config.model), report, threads)
    values = {
        "checkpoint": str(result.checkpoint),
        "float_accuracy": result.float_accuracy,
        "accuracy": {str(bits): percent for bits, percent in result.accuracy.items()},
        "usable_bits": list(result.usable),
        "calibration_images": result.images,
        "seconds": round(result.seconds, 3),
        "recipe": config.to_dict(),
    }
    return values, [quantize_table(values, config.usable_drop), advice(config, result)]


def advice(config: QuantizeConfig, result: QuantizeResult) -> str:
    """Which bit-widths to use as they are, and how to get the others."""
    lost = [bits for bits in result.accuracy if bits not in result.usable]
    lines = []
    if lost:
        names = ", ".join(map(str, lost))
        widths = ",".join(map(str, sorted({*lost, max(config.bits)})))
        lines.append(f"more than {config.usable_drop:g} points lost at: {names} bits; train from the same weights:")
        lines.append(
            f"      emqdeploy train --data {config.data} --model {config.model}"
            f" --pretrained {config.weights} --bits {widths}"
        )
    if result.usable:
        run = result.checkpoint.parent
        lines.append(f"next: emqdeploy export {run} --bits {min(result.usable)} --target onnx")
        lines.append(f"      emqdeploy bench {run} --device cpu")
    return "\n".join(lines)
