"""`docs/architectures.md` from the results of `benchmarks.architectures`: nothing on it is written by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from benchmarks.outcomes import CRASH, INTEGER, LATE, LAYERS_IN_FLOAT, REFUSED, WRONG
from benchmarks.zoo import CNN, FEATURE, TRANSFORMER

BOUND_DECIBELS = 1.0
"""What the 8-bit network may lose against the naive int8 of the same network."""

BOUND_INTEGER = 90.0
"""Percent of the CNNs whose layers all have to be integer."""

ENOUGH = 80
BOUND_MINUTES = 40
"""What all of them may take on two cores."""

BELOW = "below naive"

_TITLES = {CNN: "Convolutional networks", TRANSFORMER: "Transformers, mixers and mixtures", FEATURE: "One feature each"}

_HEADER = """# Which networks work

This page tells you whether emqdeploy takes a network, and how close its 8-bit integers come to the float model. To try
another network, run `emqdeploy quantize timm/NAME --data photos`, or give your weights and `--model module:function`.

Every network below was traced, quantized to 8 bits (`--bits 8 --levels full`), exported to ONNX, proven in onnxruntime
and verified, or it was refused. The weights are random, with statistics and activations of the sizes that trained
networks have, and the images are small. So the page says nothing about accuracy.

- **pixels**: height and width of the images.
- **outcome**: *integer* means that onnxruntime computed every layer in integers. If a network was *refused*, the reason
  stands below the table.
- **layers**: how many of the convolutions and linear layers onnxruntime really computed in integers.
- **float operators**: what computes in float between the layers, by number and type.
- **8 bits**, **naive**: signal to noise of the logits in decibels, against the untouched float model in eval mode, over
  {images} images that were not used for calibration. The signal is what differs between images. *Naive* is the same
  network made by `benchmarks.naive_int8`: weights per channel and activations per tensor, rounded by their extremes.
- **codes**, **differ**: how many values of quantized tensors were compared between onnxruntime and the exact integer
  reference, and how many of them differ.

`python -m benchmarks.architectures` measures all of this and writes the page; nothing here is written by hand. With
`--list` it shows the names, `--only 'timm/*'` takes some of them, `--resume` continues an interrupted run, and
`--images FOLDER` takes photos instead of drawn pictures.
"""


def page(rows: Sequence[dict[str, Any]], images: int) -> str:
    """The page.

    Args:
        rows: of the results.
        images: that decibels were taken over.
    """
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "onnxruntime"))
    parts = [_HEADER.format(images=images), f"Versions: {packages}.\n", _goals(rows)]
    for kind, title in _TITLES.items():
        some = [row for row in rows if row["kind"] == kind]
        if some:
            parts += [f"## {title}\n", "\n".join(_table(some)) + "\n", "\n".join(_sentences(some))]
    return "\n".join(parts).rstrip() + "\n"


def loss(row: dict[str, Any]) -> float:
    """Decibels that the 8-bit network is below the naive int8; negative where it is above."""
    ours, naive = row.get("decibels"), row.get("naive_decibels")
    return 0.0 if ours is None or naive is None else round(naive - ours, 1)


def summary(row: dict[str, Any]) -> str:
    """One line about a result."""
    reason = row.get("sentence") or row.get("warning") or ""
    return (
        f"{row['name']:42} {row['wall_seconds']:6.0f} s  {_outcome(row):14} {_layers(row):9} {_pair(row):14} {reason}"
    )


def _outcome(row: dict[str, Any]) -> str:
    """What became of a network, as counted against the goals."""
    if row.get("differing"):
        return WRONG
    finished = row["outcome"] in (INTEGER, LAYERS_IN_FLOAT)
    return BELOW if finished and loss(row) > BOUND_DECIBELS else str(row["outcome"])


def _layers(row: dict[str, Any]) -> str:
    return f"{row['integer_layers']} of {row['layers']}" if row.get("layers") else "-"


def _pair(row: dict[str, Any]) -> str:
    return "-" if row.get("decibels") is None else f"{row['decibels']} ({row['naive_decibels']})"


def _goals(rows: Sequence[dict[str, Any]]) -> str:
    outcomes = Counter(_outcome(row) for row in rows)
    cnns = [row for row in rows if row["kind"] == CNN]
    whole = sum(bool(row.get("layers")) and row["integer_layers"] == row["layers"] for row in cnns)
    share = 100 * whole / max(len(cnns), 1)
    minutes = sum(row.get("seconds", 0) for row in rows) / 120
    of_enough = minutes * min(ENOUGH / len(rows), 1)
    lines = [
        ("goal", "found", ""),
        ("---", "---", "---"),
        (f"at least {ENOUGH} networks tried", len(rows), len(rows) >= ENOUGH),
        ("no network that its proof finds wrong", outcomes[WRONG], not outcomes[WRONG]),
        (f"no network more than {BOUND_DECIBELS:g} dB below the naive int8", outcomes[BELOW], not outcomes[BELOW]),
        ("no crash", outcomes[CRASH], not outcomes[CRASH]),
        ("no network refused after calibration began", outcomes[LATE], not outcomes[LATE]),
        (
            f"at least {BOUND_INTEGER:g} % of the CNNs with all layers in integers",
            f"{share:.0f} %",
            share >= BOUND_INTEGER,
        ),
        (
            f"at most {BOUND_MINUTES} minutes of two processors for {ENOUGH} networks",
            f"{of_enough:.0f}; {minutes:.0f} for all",
            of_enough <= BOUND_MINUTES,
        ),
        ("networks refused before calibration", outcomes[REFUSED], ""),
    ]
    return "\n".join(f"| {name} | {found} | {_verdict(held)} |" for name, found, held in lines) + "\n"


def _verdict(held: Any) -> Any:
    return ("holds" if held else "missed") if isinstance(held, bool) else held


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    columns = ("network", "pixels", "outcome", "layers", "float operators", "8 bits", "naive", "codes", "differ")
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join(['---'] * len(columns))} |"
    for row in rows:
        operators = ", ".join(f"{count} {name}" for name, count in row.get("float_operators", {}).items())
        cells = [row["name"], row["size"], _outcome(row), _layers(row), operators or "-"]
        cells += [_number(row.get("decibels")), _number(row.get("naive_decibels"))]
        cells += [f"{row['codes']:,}" if row.get("codes") else "-", row["differing"] if row.get("codes") else "-"]
        yield f"| {' | '.join(map(str, cells))} |"


def _number(decibels: float | None) -> str:
    return "-" if decibels is None else f"{decibels:.1f}"


def _sentences(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        if row.get("sentence"):
            yield f"- {row['name']}, {row['outcome']} at {row.get('stage', 'start')}: {row['sentence']}"
        elif row.get("float_layers"):
            yield f"- {row['name']} computes in float: {', '.join(row['float_layers'])}"
        elif loss(row) > BOUND_DECIBELS:
            yield f"- {row['name']}: {loss(row)} dB below the naive int8"
    yield ""
