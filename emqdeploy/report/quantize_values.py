"""What quantization without training made, as values and as a table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from emqdeploy.report.terminal import quantize_table


def quantize_values(config: Any, result: Any) -> dict[str, Any]:
    """Plain values for JSON.

    Args:
        config: an `emqdeploy.training.posttraining.config.QuantizeConfig`.
        result: an `emqdeploy.training.posttraining.quantize.QuantizeResult`.
    """
    return {
        "checkpoint": None if result.checkpoint is None else str(result.checkpoint),
        "float_accuracy": result.float_accuracy,
        "accuracy": {child.name: percent for child, percent in result.accuracy.items()},
        "fidelity": {child.name: found.to_dict() for child, found in result.fidelity.items()},
        "wrong": result.wrong,
        "usable": [child.name for child in result.usable],
        "verdicts": {child.name: asdict(one) for child, one in result.verdicts.items()},
        "calibration_images": result.images,
        "seconds": round(result.seconds, 3),
        "recipe": config.to_dict(),
    }


def quantize_parts(config: Any, result: Any, advice: str) -> list[Table | str]:
    """Every child beside the float model, and, where nothing is wrong, what to do next."""
    hints = [] if result.wrong is not None else [advice]
    return [quantize_table(quantize_values(config, result), config.usable_drop), *hints]
