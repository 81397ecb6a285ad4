"""Latency of our artefacts against onnxruntime's own static post-training quantization of the same float network.

Batch 1, one and two threads, the same session options and the same images for all. A group of sessions is timed in
turns, and the sessions are created anew, in random order, many times (`interleave_anew`). Every figure is the ratio of
medians to static quantization with a bootstrap 95 % interval over these creations. A bound holds when the interval's
upper end does.

Static quantization is QDQ, uint8 activations, int8 weights per channel, as `emqdeploy export --with-baselines` makes
it, calibrated on random images like ours. Its own error stands beside it: the fused session against the same QDQ graph
as written, in float, because a CPU without VNNI saturates at full 8-bit range and is then fast at the wrong sums. Ours
is measured alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import EVERY, Subject, arguments, interleave_anew, show, subject, with_interval, write
from emqdeploy.format.bundle import INPUT
from emqdeploy.format.child import Child, select_children
from emqdeploy.format.grid import Floats
from emqdeploy.measuring.statistics import median_ratio, percentiles
from emqdeploy.runtimes.onnx_session import create_session, session_options
from emqdeploy.workflows.baselines import export_float, static_quantization

BOUNDS = {"resnet18": 1.03, "mobilenet_v2": 1.05, "timm/vit_tiny_patch16_224": 1.05, "resnet20": 1.10}
THREADS = (1, 2)
STATIC, FLOAT = "static", "float32"

Graph = tuple[bytes, dict[str, Any] | None]
"""A model, and the arrays that fill its open initializers."""


def float_model(network: Subject) -> bytes:
    """The float network as ONNX."""
    from emqdeploy.models import create_model

    plain = create_model(network.model, network.spec.classes, 3, network.input_shape[1])
    # The multi-bit network keeps the names of the float model, so its weights and shared statistics fit as they are.
    plain.load_state_dict(network.network.float_state())
    return export_float(plain, network.input_shape)


def static_quantized(model: bytes, images: Floats) -> bytes:
    """Static post-training quantization as onnxruntime's own tools do it."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "static.onnx"
        source.write_bytes(model)
        static_quantization(source, target, images)
        return target.read_bytes()


def fused_error(model: bytes, arrays: dict[str, Any] | None, images: Floats) -> float:
    """Largest difference of the fused session from the graph as written, in percent of the largest logit."""
    feed = {INPUT: images}
    fused = create_session(model, session_options(1), arrays).run(None, feed)[0]
    written = create_session(model, session_options(1, optimise=False), arrays).run(None, feed)[0]
    return float(100 * np.abs(fused - written).max() / np.abs(written).max())


@dataclass(frozen=True)
class Effort:
    """How much to measure: creations of all sessions, rounds of each, timed calls in a round, calibration images."""

    creations: int
    rounds: int
    block: int
    calibration: int

    @property
    def calls(self) -> int:
        """Timed calls of one creation."""
        return self.rounds * self.block


def measure(network: Subject, children: Sequence[Child], effort: Effort) -> list[dict[str, Any]]:
    """Times one network; returns one row per session and thread count."""
    checkpoint = network.checkpoint
    model = float_model(network)
    graphs: dict[str, Graph] = {
        FLOAT: (model, None),
        STATIC: (static_quantized(model, network.images(effort.calibration, seed=2)), None),
    }
    graphs |= {f"ours, {child}": (checkpoint.skeleton, checkpoint.network.initializers(child)) for child in children}
    probe = network.images(8, seed=3)
    errors = {name: fused_error(*graph, probe) for name, graph in graphs.items()}
    image = network.images(1)
    rows = []
    for threads in THREADS:
        make = _in_random_order(graphs, threads, image)
        samples = interleave_anew(make, effort.creations, effort.rounds, effort.block)
        ratios = {name: median_ratio(taken, samples[STATIC], effort.calls) for name, taken in samples.items()}
        rows += [_row(network.model, threads, name, samples[name], ratios[name], errors[name]) for name in graphs]
    return rows


def _in_random_order(
    graphs: Mapping[str, Graph], threads: int, image: Floats
) -> Callable[[], dict[str, Callable[[], object]]]:
    """Returns what creates all sessions anew."""
    random = np.random.default_rng(0)

    def make() -> dict[str, Callable[[], object]]:
        return {str(name): session_call(graphs[name], threads, image) for name in random.permutation(list(graphs))}

    return make


def session_call(graph: Graph, threads: int, image: Floats) -> Callable[[], object]:
    """Creates a session; returns what runs it."""
    model, arrays = graph
    session, feed = create_session(model, session_options(threads), arrays), {INPUT: image}
    return lambda: session.run(("logits",), feed)


def _row(
    model: str, threads: int, name: str, samples: Sequence[float], ratio: Mapping[str, float], error: float
) -> dict[str, Any]:
    bound = BOUNDS.get(model) if name.startswith("ours") else None
    return {
        "model": model,
        "threads": threads,
        "session": name,
        "latency_ms": percentiles(samples),
        "ratio_to_static": ratio,
        "bound": bound,
        "holds": None if bound is None else ratio["high"] <= bound,
        "fused_error_percent": error,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "latency")
    parser.add_argument("--models", nargs="+", default=list(BOUNDS))
    parser.add_argument("--bits", default="1,2,4,8", help="children, or: all")
    options = parser.parse_args(argv)
    children = select_children(EVERY, options.bits)
    rows: list[dict[str, Any]] = []
    for model in options.models:
        # Small networks have short calls: more of them in a block keeps the wake-up's share small.
        block = 20 if model == "resnet20" else 5
        effort = Effort(2, 2, 3, 4) if options.quick else Effort(20, 4, block, 32)
        rows += measure(subject(model), children, effort)
    shown = [
        (
            *(f"{row['model']}, {row['threads']} threads", row["session"], row["latency_ms"]["p50"]),
            with_interval(row["ratio_to_static"]),
            "" if row["bound"] is None else f"{'holds' if row['holds'] else 'MISSED'} ({row['bound']:.2f})",
            f"{row['fused_error_percent']:.2f} %",
        )
        for row in rows
    ]
    columns = ("network", "session", "p50 ms", "ratio to static [95 %]", "bound", "own error when fused")
    show("Latency, batch 1", columns, shown)
    write(options.json, "latency", options.quick, rows)


if __name__ == "__main__":
    main()
