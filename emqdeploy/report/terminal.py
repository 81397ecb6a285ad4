"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show(*parts: Table | str) -> None:
    """Prints tables and lines to standard output; a pipe gets the full width, not a terminal's."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for part in parts:
        if isinstance(part, Table) and part.title:
            # A title inside the table would be wrapped to the table's width.
            console.print(part.title, style="bold", highlight=False, soft_wrap=True)
            part.title = None
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))


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


def origin(bits: int, trained: Sequence[int], method: str | None) -> str:
    """How a bit-width came about: trained, never visited by training, or calibrated where nothing was trained."""
    if method == "post-training":
        return "calibrated"
    return "trained" if bits in trained else "unseen"


def accuracy_table(title: str, accuracy: dict[str, float], trained: list[int], method: str | None = None) -> Table:
    """Accuracy per bit-width; bit-widths that training never visited are marked."""
    result = table(title, "bits", "accuracy", "")
    for bits, value in accuracy.items():
        result.add_row(bits, percent(value), origin(int(bits), trained, method))
    return result


def quantize_table(result: dict[str, Any], usable_drop: float) -> Table:
    """Accuracy per bit-width beside the float model's."""
    seconds, images = result["seconds"], result["calibration_images"]
    title = f"{result['checkpoint']}: test accuracy without training, {images} images, {seconds:.0f} s of calibration"
    shown = table(title, "bits", "accuracy", "to float", "")
    shown.add_row("float", percent(result["float_accuracy"]), "", "as it came")
    for bits, value in result["accuracy"].items():
        usable = int(bits) in result["usable_bits"]
        verdict = "usable" if usable else f"loses more than {usable_drop:g}: train it"
        shown.add_row(bits, percent(value), f"{value - result['float_accuracy']:+.2f}", verdict)
    return shown


def verify_table(results: list[dict[str, Any]], images: str) -> Table:
    """Every rung of parity at every bit-width."""
    result = table(
        f"Parity with the integer reference ({images})",
        *("bits", "rung", "same class", "differing codes", "largest step", "logits differ", "first difference", ""),
    )
    for entry in results:
        for index, (name, rung) in enumerate(entry["rungs"].items()):
            result.add_row(
                str(entry["bits"]) if index == 0 else "",
                name,
                f"{rung['images'] - rung['flips']} of {rung['images']}",
                f"{rung['differing_codes']} of {rung['codes']}" if rung["codes"] else "not visible",
                str(rung["max_step_error"]) if rung["codes"] else "-",
                f"{rung['max_output_steps']:.2g} steps",
                rung["first_layer"] or "-",
                "[green]ok" if rung["wrong"] is None else f"[red]{rung['wrong']}",
            )
        for name, reason in entry["failed"].items():
            result.add_row("", name, *[""] * 5, f"[red]{reason}")
        for name in entry["skipped"]:
            result.add_row("", name, *[""] * 5, "not run")
    # Reasons are whole sentences, the same at every bit-width: below the table, or they would squeeze its columns.
    reasons = {name: reason for entry in results for name, reason in entry["skipped"].items()}
    result.caption = "\n".join(f"{name} was not run: {escape(reason)}" for name, reason in reasons.items()) or None
    return result


def inspect_parts(description: dict[str, Any]) -> list[Table | str]:
    """A checkpoint at a glance."""
    metadata = description["metadata"]
    widths = description["bits"]
    layers = table(
        "Layers", "name", "shape", "stored as", "input", *(f"{bits} b" for bits in widths),
        caption="per bit-width: effective bits per weight, the per-channel numbers included; * = some channels use"
        " fewer bits than nominal, because their integers would not fit int8",
    )  # fmt: skip
    for layer in description["layers"]:
        cells = []
        for bits in widths:
            mark = "*" if str(bits) in layer["channels_below_nominal"] else ""
            cells.append(f"{layer['effective_bits'][str(bits)]:.2f}{mark}")
        name = layer["name"] if layer["kind"] != "normalization" else f"{layer['name']} (normalization)"
        layers.add_row(name, "x".join(map(str, layer["shape"])), layer["stored_as"], layer["input"], *cells)
    sizes = table("Bit-widths", "bits", "", "accuracy", "bytes to load")
    for bits in widths:
        sizes.add_row(
            str(bits),
            origin(bits, description["trained_bits"], metadata.get("recipe", {}).get("method")),
            percent(metadata["accuracy"].get(str(bits))),
            size(description["size_bytes_per_bits"][str(bits)]),
        )
    head = (
        f"{description['path']}: {metadata['network']['model']} on {metadata['data']['name']},"
        f" {description['weights']} quantized weights, {size(description['size_bytes'])},"
        f" input {tuple(metadata['network']['input_shape'])}, {len(metadata['classes'])} classes"
    )
    return [head, sizes, layers, *_float_line(description["float_ops"])]


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
            "bits",
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
    switching = {row["bits"]: row for row in result["bench"]["switch"]["rows"]}
    for row in result["rows"]:
        latency, parity, switched = row["latency_ms"], row["parity"], switching[row["bits"]]
        rows.add_row(
            str(row["bits"]),
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
    unseen = "  ".join(f"{bits}-bit {percent(value)}" for bits, value in result["accuracy"].items())
    checkpoint = result["checkpoint"]
    notes = [
        f"all bit-widths of the same file: {unseen}",
        "every bit-width computes in int8 and runs at int8 speed: fewer bits save storage, not time",
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
        state = f"[{colour}]{check['state']}"
        checks.add_row(check["part"], check["for"], state, escape(check["advice"]))
    found = result["environment"]
    kernels = {
        "VNNI": "VNNI: 8-bit products are exact at full range; fewer bits run no faster",
        "AVX2": "AVX2 without VNNI: exact, because codes and weights stay within 127 (64 behind signed tensors)",
    }.get(result["integer_kernels"], "no x86 vector integers found; onnxruntime chooses its own kernels")
    lines = [
        f"processor: {found['cpu']}, {found['cores']} cores; {kernels}",
        f"onnxruntime providers: {', '.join(result['providers']) or 'none'} (the CPU's by default, see provider=)",
        f"python {found['python']}; {', '.join(f'{name} {version}' for name, version in found['packages'].items())}",
    ]
    return [checks, *lines]
