"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from emqdeploy.errors import plain_text
from emqdeploy.format.card import MOST_DECIBELS, POST_TRAINING, Card, convert
from emqdeploy.format.child import Widths, in_words

_ENDLESS = 1 << 16
"""Columns where there is no terminal: nothing is parted or wrapped."""


def show(*parts: Table | str) -> None:
    """Prints tables and lines to standard output; a pipe or a log gets them in full width, whole."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, emoji=False, width=_ENDLESS)
    for part in parts:
        if isinstance(part, str):
            console.print(styled(part), soft_wrap=True)
            continue
        # A title or a caption inside the table would be wrapped to the table's width.
        if part.title:
            console.print(styled(part.title, "bold"), soft_wrap=True)
        for piece in fitting(part, console):
            console.print(piece)
        if part.caption:
            console.print(styled(part.caption, "dim italic"))


def styled(words: object, style: str = "") -> Text:
    """Words as they are, whatever brackets and control characters are in them; a style comes from here alone."""
    return words if isinstance(words, Text) else Text(plain_text(words), style)


def fitting(found: Table, console: Console) -> list[Table]:
    """A table as several ones where it is too wide for the terminal, each with its first column.

    What is too wide even so, a sentence or a long name, is folded.
    """
    first, *rest = found.columns
    endless = console.options.update(max_width=_ENDLESS)

    def wide(columns: Sequence[Column]) -> bool:
        return Measurement.get(console, endless, _of_columns(columns)).maximum > console.width

    pieces: list[list[Column]] = [[first]]
    for column in rest:
        if column.no_wrap and len(pieces[-1]) > 1 and wide([*pieces[-1], column]):
            pieces.append([first])
        pieces[-1].append(column)
    return [_of_columns(piece, fold=wide(piece)) for piece in pieces]


def _of_columns(columns: Sequence[Column], fold: bool = False) -> Table:
    made = Table()
    for column in columns:
        made.add_column(
            styled(column.header),
            justify=column.justify,
            no_wrap=column.no_wrap and not fold,
            overflow="fold" if fold else column.overflow,
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*map(styled, cells))
    return made


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "not measured"
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def percent(value: float | None) -> str:
    """An accuracy, or that it was not measured."""
    return "not measured" if value is None else f"{value:.2f} %"


def milliseconds(value: float | None) -> str:
    """A duration with three significant digits; short ones in microseconds."""
    if value is None:
        return "-"
    return f"{value * 1000:.1f} µs" if value < 0.1 else f"{value:.3g} ms"


def table(title: str, *columns: str, caption: str | None = None) -> Table:
    """A table whose first column is text and whose others are numbers."""
    result = Table(title=title, caption=caption, caption_justify="left")
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return result


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
) -> Table:
    """Accuracy per child by name, and where known how far it is from what was trained; unseen children are marked."""
    columns = _FIDELITY if fidelity else ()
    result = table(title, "child", "accuracy", *columns, "", caption=_measured_on(fidelity))
    for child, value in accuracy.items():
        cells = fidelity_cells(fidelity[child]) if fidelity else []
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
    title = f"{written}: test accuracy without training, {images} images, {seconds:.0f} s of calibration"
    shown = table(title, "child", "accuracy", "to float", *_FIDELITY, "", caption=_measured_on(result["fidelity"]))
    shown.add_row("float", percent(result["float_accuracy"]), "", "", "", "as it came")
    for child, value in result["accuracy"].items():
        verdict = "usable" if child in result["usable"] else f"loses more than {usable_drop:g}: train it"
        cells = fidelity_cells(result["fidelity"][child])
        shown.add_row(child, percent(value), f"{value - result['float_accuracy']:+.2f}", *cells, verdict)
    return shown


def verify_table(results: list[dict[str, Any]], images: str) -> Table:
    """Every rung of parity at every child."""
    result = table(
        f"Parity with the integer reference ({images})",
        *("child", "rung", "same class", "differing codes", "largest step", "logits differ", "first difference", ""),
    )
    for entry in results:
        child = entry["child"]
        if entry["origin"] is not None:
            result.add_row(child, *_origin_cells(entry["origin"]))
            child = ""
        for index, (name, rung) in enumerate(entry["rungs"].items()):
            result.add_row(
                child if index == 0 else "",
                name,
                f"{rung['images'] - rung['flips']} of {rung['images']}",
                f"{rung['differing_codes']} of {rung['codes']}" if rung["codes"] else "not visible",
                str(rung["max_step_error"]) if rung["codes"] else "-",
                f"{rung['max_output_steps']:.2g} steps",
                rung["first_layer"] or "-",
                styled("ok", "green") if rung["wrong"] is None else styled(rung["wrong"], "red"),
            )
        for name, reason in entry["failed"].items():
            result.add_row("", name, *[""] * 5, styled(reason, "red"))
        for name in entry["skipped"]:
            result.add_row("", name, *[""] * 5, "not run")
    # Reasons are whole sentences, the same at every child: below the table, or they would squeeze its columns.
    reasons = {name: reason for entry in results for name, reason in entry["skipped"].items()}
    result.caption = "\n".join(f"{name} was not run: {reason}" for name, reason in reasons.items()) or None
    return result


def _origin_cells(found: dict[str, Any]) -> list[str | Text]:
    """The child beside the network that it was made from: no rung, but what all rungs have in common."""
    snr, _ = fidelity_cells(found)
    alike = round(found["agreement"] / 100 * found["decided"])
    verdict = styled("ok", "green") if found["judged"] else styled("not judged")
    verdict = verdict if found["wrong"] is None else styled(found["wrong"], "red")
    name = found["against"] if found["measured"] else f"{found['against']}, when made"
    return [name, f"{alike} of {found['decided']}", "-", "-", snr, found["first_layer"] or "-", verdict]


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
        return ["operators between the layers are not listed: that needs the onnx package"]
    found = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return [f"computed in float, whatever the bit-width: {found}"] if found else []


def demo_parts(result: dict[str, Any]) -> list[Table | str]:
    """The demo's one table, and what to type next."""
    seconds, passes = result["seconds"], result["sample_passes"]
    cpu = result["environment"]["cpu"]
    rows = table(
        f"One network, trained once ({seconds:.0f} s, {passes} sample passes), on {cpu}, one image at a time",
        *(
            "child",
            "accuracy",
            "p50",
            "p90",
            "p99",
            "ONNX file",
            "in .emq",
            "stored as",
            "computed as",
            "differing codes",
        ),
        *("switch", "first output"),
    )
    switching = {row["child"]: row for row in result["bench"]["switch"]["rows"]}
    for row in result["rows"]:
        latency, parity, switched = row["latency_ms"], row["parity"], switching[row["child"]]
        rows.add_row(
            row["child"],
            percent(row["accuracy"]),
            *(milliseconds(latency[key]) for key in ("p50", "p90", "p99")),
            size(row["artefact_bytes"]),
            size(row["size_bytes"]),
            row["stored_as"],
            row["computed_as"],
            f"{parity['differing_codes']} of {parity['codes']}",
            milliseconds(switched["set_bits_ms"]["p50"]),
            milliseconds(switched["first_output_ms"]["p50"]),
        )
    unseen = "  ".join(f"{in_words(child)} {percent(value)}" for child, value in result["accuracy"].items())
    checkpoint = result["checkpoint"]
    notes = [
        f"all children of the same file: {unseen}",
        "onnxruntime computes every bit-width in int8, at int8 speed: there fewer bits save storage, not time",
        "next: emqdeploy inspect        what the checkpoint holds, layer by layer",
        "      emqdeploy verify         all bit-widths against the integer reference, on the whole test set",
        f"      emqdeploy bench {checkpoint} --bits 1,2,3,4,5,6,7,8",
        "      emqdeploy train --data fashion-mnist --model resnet20 --bits 2,4,8",
    ]
    return [rows, *notes]


def doctor_parts(result: dict[str, Any]) -> list[Table | str]:
    """What works here and what to do about the rest."""
    checks = Table("part", "for", "state", "do", title=f"emqdeploy {result['version']}")
    for check in result["checks"]:
        colour = "green" if check["state"] == "ok" else "dim" if check["state"] == "not installed" else "red"
        checks.add_row(check["part"], check["for"], styled(check["state"], colour), check["advice"])
    found = result["environment"]
    kernels = {
        "VNNI": "VNNI: 8-bit products are exact at full range; fewer bits run no faster",
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
