"""Children with widths per layer, found after training and written beside the uniform ones of a file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from emqdeploy.errors import EmqError
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint, save_checkpoint
from emqdeploy.progress import Report, silent
from emqdeploy.report.mixing import draw_front
from emqdeploy.training.mixing.moments import Matching
from emqdeploy.training.mixing.sensitivity import SENSITIVITIES
from emqdeploy.training.mixing.stored import named_child, with_child
from emqdeploy.training.run import RunDirectory
from emqdeploy.workflows.mixing.budgets import Budget
from emqdeploy.workflows.mixing.costs.base import COSTS
from emqdeploy.workflows.mixing.judging import Judge, judge_all, to_float_model, with_results
from emqdeploy.workflows.mixing.opening import Opened, deployed, open_mix
from emqdeploy.workflows.mixing.searching import Front, descend, ends, measure_losses
from emqdeploy.workflows.mixing.settings import MixSettings


def mix(settings: MixSettings, report: Report = silent) -> dict[str, Any]:
    """Finds a child for every budget, estimates its scales and biases and writes it into the file; nothing is trained.

    Args:
        settings: what is asked for.
        report: receives progress.

    Returns:
        ``checkpoint`` (what was written, None where the widest child meets every budget), ``layers`` with their
        losses, ``front`` and ``uniform`` (children with their costs and answers), ``children`` (one for each budget),
        ``notes`` and how it was measured.

    Raises:
        EmqError: a budget is met by nothing, there is nothing to mix, or images or packages are missing.
    """
    opened = open_mix(settings)
    target = settings.out or opened.path
    with RunDirectory(target.parent).held():
        result = _mix(opened, settings, target, report)
        result["files"] = []
        try:
            result["files"] += draw_front(result, settings.plot or target.parent / "mix", shown_cost)
        except EmqError as error:
            if settings.plot is not None:
                raise
            result["notes"].append(f"no picture: {error}")
    return result


def _mix(opened: Opened, settings: MixSettings, target: Path, report: Report) -> dict[str, Any]:
    started = time.perf_counter()
    kinds = list(dict.fromkeys(budget.kind for budget in settings.budget))
    fronts = ends(opened, kinds)
    limits = {budget: fronts[budget.kind].limit(budget) for budget in settings.budget}
    report(f"sensitivity of {len(opened.offer)} layers on {sum(map(len, opened.batches))} training images")
    losses, signal = measure_losses(opened, settings, report)
    fronts = {kind: descend(front, losses, settings.descent) for kind, front in fronts.items()}
    found = {budget: fronts[budget.kind].meet(budget) for budget in settings.budget}
    made = {budget: _child(opened, budget.child, mix) for budget, mix in found.items() if mix != opened.widths}
    notes = [f"{budget} is met by child {opened.start.name} as it is" for budget in found if budget not in made]
    taken = {child.name for child in opened.checkpoint.network.children} & {child.name for child in made.values()}
    notes += [f"child {name} of the file was replaced" for name in sorted(taken)]
    matching = Matching(opened.structure, opened.checkpoint.network, opened.start, opened.batches)
    checkpoint, judge = opened.checkpoint, Judge(opened)
    for number, child in enumerate(made.values(), 1):
        report(f"child {number} of {len(made)}: {child.name}")
        checkpoint = _with(checkpoint, child, opened, matching)
    points = [
        _child(opened, f"front-{place}", mix) for place, mix in enumerate(fronts[kinds[0]].spread(settings.points))
    ]
    front = []
    for number, child in enumerate(points, 1):
        report(f"mix {number} of {len(points)} of the front")
        module = deployed(opened, _with(opened.checkpoint, child, opened, matching), child)
        front.append(_point(opened, module, child, fronts, judge))
    seconds = time.perf_counter() - started
    own = settings.data in (None, opened.checkpoint.card.data.name)
    modules = {child: deployed(opened, checkpoint, child) for child in made.values()}
    judged = judge_all(opened, modules, settings.test_images, own, report)
    fidelity = to_float_model(opened, checkpoint, modules, judge)
    written = None
    if made:
        checkpoint = with_results(checkpoint, judged, fidelity, settings.recipe())
        save_checkpoint(target, checkpoint)
        written = str(target)
    rows = []
    for budget, mix in found.items():
        child = made.get(budget, opened.start)
        cost = fronts[budget.kind].costs.of(mix)
        row = {
            "budget": str(budget),
            "limit": limits[budget],
            "cost": cost,
            "cost_shown": shown_cost(budget.kind, cost),
        }
        row |= _point(opened, modules.get(child, opened.widest), child, fronts, judge)
        row["accuracy"] = judged.accuracy.get(child)
        row["verdict"] = asdict(judged.verdicts[child]) if child in judged.verdicts else None
        row["fidelity"] = fidelity[child].to_dict() if child in fidelity else None
        rows.append(row)
    uniform = {
        child: deployed(opened, opened.checkpoint, child)
        for child in opened.checkpoint.network.children
        if child.uniform
    }
    return {
        "checkpoint": written,
        "start": opened.start.name,
        "start_accuracy": judged.accuracy.get(opened.start),
        "sensitivity": settings.sensitivity,
        "shown": SENSITIVITIES[settings.sensitivity].what,
        "descent": settings.descent,
        "images": sum(map(len, opened.batches)),
        "test_images": judged.images,
        "labelled": opened.labelled,
        "kinds": kinds,
        "whole": {kind: one.whole for kind, one in fronts.items()},
        "least": {kind: one.least for kind, one in fronts.items()},
        "layers": _layers(opened, settings, losses, signal, fronts, found),
        "front": front,
        "uniform": [_point(opened, module, child, fronts, judge) for child, module in uniform.items()],
        "children": rows,
        "seconds": round(seconds, 2),
        "notes": [*opened.dataset.notes, *notes],
    }


def _child(opened: Opened, name: str, mix: Mapping[str, int]) -> Child:
    """A child of a mix; layers that were kept out of it stay as they are at the start."""
    layers = opened.checkpoint.network.layers
    widths = {layer: opened.start.weights.of(layer) for layer, one in layers.items() if not one.pinned}
    return named_child(name, widths | dict(mix), opened.start)


def _with(checkpoint: Checkpoint, child: Child, opened: Opened, matching: Matching) -> Checkpoint:
    """Adds a child, its scales and biases estimated."""
    network = with_child(checkpoint.network, child, opened.start)
    return replace(checkpoint, network=matching(network, child))


def _point(
    opened: Opened, module: nn.Module, child: Child, fronts: Mapping[str, Front], judge: Judge
) -> dict[str, Any]:
    """What a child costs, and how it answers."""
    widths = {layer: child.weights.of(layer) for layer in opened.offer}
    known = all(bits in opened.offer[layer] for layer, bits in widths.items())
    costs = {kind: one.costs.of(widths) if known else None for kind, one in fronts.items()}
    said = judge(module)
    return {**child.to_dict(), "costs": costs, "snr_db": said.snr_db, "agreement": said.agreement}


def _layers(
    opened: Opened,
    settings: MixSettings,
    losses: Mapping[str, Mapping[int, float]],
    signal: float,
    fronts: Mapping[str, Front],
    found: Mapping[Budget, Mapping[str, int]],
) -> list[dict[str, Any]]:
    """Every layer: what it loses and saves at each width, and what it has in the children that were found."""
    shown = SENSITIVITIES[settings.sensitivity]().shown
    rows = []
    for name, by_width in losses.items():
        narrower = [bits for bits in sorted(by_width) if bits < opened.widths[name]]
        saves = {
            kind: {bits: one.costs.saved(name, opened.widths[name], bits) for bits in narrower}
            for kind, one in fronts.items()
        }
        rows.append(
            {
                "name": name,
                "macs": opened.subject.macs[name],
                "weights": int(opened.checkpoint.network.layers[name].codes.size),
                "losses": {bits: by_width[bits] for bits in narrower},
                "shown": {bits: shown(by_width[bits], signal) for bits in narrower},
                "saves": saves,
                "bits": {budget.child: widths[name] for budget, widths in found.items()},
            }
        )
    return rows


def shown_cost(kind: str, value: float | None) -> str:
    """A cost for people."""
    return "-" if value is None else COSTS[kind]().shown(value)
