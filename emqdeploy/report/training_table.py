"""What training made, as values and as a table."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from emqdeploy.format.child import FLOAT, in_order
from emqdeploy.format.emq import read_card
from emqdeploy.report.terminal import accuracy_table


def training_values(result: Any) -> dict[str, Any]:
    """Plain values for JSON.

    Args:
        result: an `emqdeploy.training.api.TrainResult`.
    """
    return {
        "checkpoint": str(result.checkpoints[0]) if result.checkpoints else None,
        "checkpoints": [str(made) for made in result.checkpoints],
        "run": str(result.run),
        "accuracy": {child.name: result.accuracy[child] for child in in_order(result.accuracy)},
        "fidelity": {child.name: result.fidelity[child].to_dict() for child in in_order(result.fidelity)},
        "wrong": result.wrong,
        "trained": [child.name for child in in_order(result.trained)],
        "seconds": round(result.seconds, 3),
        "sample_passes": result.sample_passes,
    }


def training_parts(config: Any, result: Any, values: dict[str, Any]) -> list[Table | str]:
    """The accuracy of every child, and what to type next.

    Args:
        config: an `emqdeploy.training.config.TrainConfig`.
        result: an `emqdeploy.training.api.TrainResult`.
        values: from `training_values`.
    """
    accuracy = values["accuracy"]
    what = values["checkpoint"] or f"{result.run}/latent.safetensors (float network)"
    title = f"{what}: test accuracy of the deployed network, {values['seconds']:.0f} s of training"
    shown = accuracy_table(title, accuracy, values["trained"], fidelity=values["fidelity"])
    if result.wrong:
        return [shown]
    if result.trained == (FLOAT,):
        return [shown, f"next: emqdeploy quantize {result.run} --data {config.data} --model {config.model}"]
    first = [child.name for child in read_card(result.checkpoints[0])[1]] if result.checkpoints else list(accuracy)
    example = "4" if "4" in first else first[0]
    # Several files in one run have to be named one by one.
    network = result.run if len(result.checkpoints) < 2 else result.checkpoints[0]
    export = f"next: emqdeploy export {network} --bits {example} --target onnx"
    return [shown, f"{export}\n      emqdeploy bench {network} --device cpu"]
