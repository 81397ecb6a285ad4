"""Tables on the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from emqdeploy.format.card import MOST_DECIBELS, POST_TRAINING, Card, convert
from emqdeploy.format.child import Widths, in_words
from emqdeploy.format.precision import FLOAT32, INT8
from emqdeploy.report.fitting import ENDLESS, fitting, styled, table
from emqdeploy.report.units import Unit, of_bytes, of_times, percent, size

_TO_COPY = re.compile(r"\b(emqdeploy|pip|python) [a-z]")
"""What starts in a line that is no prose: breaking it would break what a person copies."""


def show(*parts: Table | str) -> None:
    """Prints tables and lines to standard output; a pipe or a log gets them in full width, whole."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, emoji=False, width=ENDLESS)
    for part in parts:
        if isinstance(part, str):
            console.print(styled(part), soft_wrap=bool(_TO_COPY.search(part)))
            continue
        # A title or a caption inside the table would be wrapped to the table's width.
        if part.title:
            console.print(styled(part.title, "bold"))
        for piece in fitting(part, console):
            console.print(piece)
        if part.caption:
            console.print(styled(part.caption, "dim italic"))


def origin(child: str, trained: Sequence[str], method: str | None) -> str:
    """How a child came about: trained, never visited by training, or calibrated where nothing was trained."""
    if method == POST_TRAINING:
        return "calibrated"
    return "trained" if child in trained else "unseen"


def accuracy_table(
    title: str,
    accuracy: dict[str, float],
    trained: Sequence[str],
    method: str | None = None,
    fidelity: dict[str, dict[str, Any]] | None = None,
    floating: float | None = None,
) -> Table:
    """Accuracy per child by name, and where known how far it is from what was trained; unseen children are marked.

    ``floating`` is that of the float network that the children were quantized from.
    """
    columns = _FIDELITY if fidelity else ()
    result = table(title, "child", "accuracy", *columns, "", caption=_measured_on(fidelity))
    if floating is not None:
        result.add_row("float", percent(floating), *[""] * len(columns), "as it came")
    for child, value in accuracy.items():
        # The float network, where it was trained beside the others, is no file that could be far from anything.
        cells = fidelity_cells(fidelity[child]) if fidelity and child in fidelity else [""] * len(columns)
        result.add_row(child, percent(value), *cells, origin(child, trained, method))
    return result


_FIDELITY = ("signal to noise", "same class")


def fidelity_cells(found: dict[str, Any]) -> list[str]:
    """Signal to noise of a child's logits, and the share of clear decisions that it leaves."""
    snr = found["snr_db"]
    return ["equal" if snr >= MOST_DECIBELS else f"{snr:.1f} dB", f"{found['agreement']:.1f} %"]


def _measured_on(fidelity: dict[str, dict[str, Any]] | None) -> str | None:
    """What the columns of fidelity are about."""
    if not fidelity:
        return None
    found = next(iter(fidelity.values()))
    against, images = found["against"], found["images"]
    return f"signal to noise of the logits and the same class where it is no tie: to the {against}, {images} images"


def quantize_table(result: dict[str, Any], usable_drop: float) -> Table:
    """Every child beside the float model: accuracy, signal to noise of its logits, decisions."""
    seconds, images = result["seconds"], result["calibration_images"]
    written = result["checkpoint"] or "nothing written"
    labelled = result["float_accuracy"] is not None
    what = "test accuracy without training" if labelled else "decisions of the float model kept without training"
    title = f"{written}: {what}, {images} images, {seconds:.0f} s of calibration"
    first = ("accuracy", "lost") if labelled else ("decided otherwise",)
    caption = f"lost: in points, bounds of 95 % confidence each; usable: at most {usable_drop:g}"
    caption = f"{caption if labelled else ''}\n{_measured_on(result['fidelity'])}".strip()
    shown = table(title, "child", *first, *_FIDELITY, "", caption=caption)
    shown.add_row("float", *([percent(result["float_accuracy"]), ""] if labelled else [""]), "", "", "as it came")
    words = {"usable": "usable", "unsure": "unsure", "lost": "train it" if labelled else "lost"}
    for child, one in result["verdicts"].items():
        bounds = f"{one['least']:.1f} to {one['most']:.1f}"
        first = (percent(result["accuracy"][child]), bounds) if labelled else (f"{one['lost']:.2f} ({bounds})",)
        shown.add_row(child, *first, *fidelity_cells(result["fidelity"][child]), words[one["word"]])
    return shown


def inspect_parts(description: dict[str, Any]) -> list[Table | str]:
    """A checkpoint at a glance."""
    card = convert(Card, description["card"])
    children = description["children"]
    layers = table(
        "Layers", "name", "shape", "stored as", "input", *(child["name"] for child in children),
        caption="per child: effective bits per weight, the per-channel numbers included; * = some channels use fewer"
        " bits than nominal, because their integers would not fit int8",
    )  # fmt: skip
    for layer in description["layers"]:
        cells = [
            f"{layer['effective_bits'][child['name']]:.2f}"
            + ("*" if child["name"] in layer["channels_below_nominal"] else "")
            for child in children
        ]
        name = layer["name"] if layer["kind"] != "normalization" else f"{layer['name']} (normalization)"
        layers.add_row(name, "x".join(map(str, layer["shape"])), layer["stored_as"], layer["input"], *cells)
    fidelity = description["card"]["fidelity"]
    columns = _FIDELITY if fidelity else ()
    sizes = table(
        "Children", "child", "weights", "activations", "", "accuracy", *columns, "bytes to load",
        caption=_measured_on(fidelity),
    )  # fmt: skip
    for child in children:
        sizes.add_row(
            child["name"],
            *(_in_short(child[what]) for what in ("weights", "activations")),
            origin(child["name"], card.trained, card.method),
            percent(child["accuracy"]),
            *(fidelity_cells(fidelity[child["name"]]) if child["name"] in fidelity else [""] * len(columns)),
            size(child["size_bytes"]),
        )
    head = (
        f"{description['path']}: {card.model} on {card.data.name}, {description['weights']} quantized weights,"
        f" {size(description['size_bytes'])}, input {card.input_shape}, {len(card.classes)} classes"
    )
    named = [line for child in children for line in _named_layers(child)]
    return [head, sizes, *named, layers, *_float_line(description["float_ops"])]


def _in_short(widths: int | dict[str, int]) -> str:
    """The one width of all layers, or the lowest and the highest."""
    found = Widths.read(widths).all
    return f"{min(found)} to {max(found)}" if max(found) > min(found) else str(found[0])


def _named_layers(child: dict[str, Any]) -> list[str]:
    """The layers that a child names, and what the others take."""
    lines = []
    for what in ("weights", "activations"):
        widths = Widths.read(child[what])
        if not widths.uniform:
            named = ", ".join(f"{layer} {bits}" for layer, bits in widths.layers)
            rest = child["by_default"][what]
            others = f", the {len(rest)} layers that it does not name {widths.default}" if rest else ""
            lines.append(f"bits of {child['name']}'s {what}: {named}{others}")
    return lines


def _float_line(counts: dict[str, int] | None) -> list[str]:
    """What computes in float between the layers, if anything."""
    if counts is None:
        return ["operators between the layers are not listed: that needs protobuf, which comes with onnxruntime"]
    found = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return [f"computed in float, whatever the bit-width: {found}"] if found else []


def demo_parts(result: dict[str, Any]) -> list[Table | str]:
    """The demo's one table, and what to type next."""
    seconds, passes = result["seconds"], result["sample_passes"]
    cpu = result["environment"]["cpu"]
    found, switching = result["rows"], {row["child"]: row for row in result["bench"]["switch"]["rows"]}
    times = [
        [
            *(row["latency_ms"][key] for key in ("p50", "p99")),
            *(switching[row["child"]][key]["p50"] for key in ("set_bits_ms", "first_output_ms")),
        ]
        for row in found
    ]
    latency, switch = (of_times([value for row in times for value in row[part]]) for part in (slice(2), slice(2, 4)))
    stored = of_bytes([row["size_bytes"] for row in found])
    runtime, references = found[0]["runtime"], result["references"]
    bases = [name for name in (INT8, FLOAT32) if name in found[0]["times_as_fast"]]
    rows = table(
        f"One network, trained once ({seconds:.0f} s, {passes} sample passes), in {runtime} on {cpu}, one image at a"
        " time",
        *("child", "accuracy", f"p50 {latency.name}", f"p99 {latency.name}", *(f"as fast as {name}" for name in bases)),
        *(f"switch {switch.name}", f"first output {switch.name}"),
        *(f"in .emq {stored.name}", "differing codes", "ONNX file", "stored as", "computed as"),
    )
    for row, taken in zip(found, times, strict=True):
        rows.add_row(
            row["child"],
            percent(row["accuracy"]),
            *map(latency, taken[:2]),
            *(f"{row['times_as_fast'][name]['ratio']:.2f}" for name in bases),
            *map(switch, taken[2:]),
            stored(row["size_bytes"]),
            f"{row['parity']['differing_codes']} of {row['parity']['codes']}",
            size(row["artefact_bytes"]),
            row["stored_as"],
            row["computed_as"],
        )
    unseen = ", ".join(f"{value:.2f} % at {in_words(child)}" for child, value in result["accuracy"].items())
    checkpoint = result["checkpoint"]
    notes = [
        f"every child of the file: {unseen}",
        *_compared(references, latency),
        *([_INT8_SPEED] if runtime == "onnxruntime" else []),
        *result["notes"],
        "next: emqdeploy inspect        what the checkpoint holds, layer by layer",
        "      emqdeploy verify         every bit-width against the integer reference",
        f"      emqdeploy bench {checkpoint} --bits all",
        "      emqdeploy train --data fashion-mnist --model resnet20 --bits 2,4,8",
    ]
    return [rows, *notes]


_INT8_SPEED = "onnxruntime computes every bit-width in int8, at int8 speed: there fewer bits save storage, not time"


def _compared(references: Sequence[dict[str, Any]], unit: Unit) -> list[str]:
    """What children are compared with, in one line."""
    timed = [f"{row['label']} {unit(row['latency_ms']['p50'])} {unit.name}" for row in references if row["latency_ms"]]
    return [f"as fast as: how many times, of onnxruntime, in the same run: {', '.join(timed)}"] if timed else []


def doctor_parts(result: dict[str, Any]) -> list[Table | str]:
    """What works here and what to do about the rest."""
    checks = Table("part", "for", "state", "do", title=f"emqdeploy {result['version']}")
    for check in result["checks"]:
        colour = "green" if check["state"] == "ok" else "dim" if check["state"] == "not installed" else "red"
        checks.add_row(check["part"], check["for"], styled(check["state"], colour), check["advice"])
    found = result["environment"]
    kernels = {
        "VNNI": "VNNI: 8-bit products are exact at full range",
        "AVX2": "AVX2 without VNNI: exact; networks of full levels run there in onnxruntime's slower exact kernels",
    }.get(result["integer_kernels"], "no x86 vector integers found; onnxruntime chooses its own kernels")
    works = [name for name, reason in result["runtimes"].items() if reason is None]
    native = result["native_kernels"]
    lines = [
        f"runtimes that work here: {', '.join(works) or 'none'}",
        *(f"not {name}: {reason}" for name, reason in result["runtimes"].items() if reason is not None),
        f"processor: {found['cpu']}, {found['cores']} cores; {kernels}",
        *([f"native kernels: {native[0]} (EMQ_ISA chooses among {', '.join(native)})"] if native else []),
        f"onnxruntime providers: {', '.join(result['providers']) or 'none'} (the CPU's by default, see provider=)",
        f"python {found['python']}; {', '.join(f'{name} {version}' for name, version in found['packages'].items())}",
    ]
    return [checks, *lines]
