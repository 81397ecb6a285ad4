"""Latency of our artefacts against onnxruntime's own static post-training quantization of the same float network.

Batch 1, one and two threads, the same session options and the same images for all. A group of sessions is timed in
turns, and the sessions are created anew, in random order, many times: where the allocator puts a session moves
its time by some percent, which no number of calls averages out. Every figure is the ratio of medians to static
quantization with a bootstrap 95 % interval over these creations. A bound holds when the interval's upper end does.

Static quantization is QDQ, uint8 activations, int8 weights per channel, as `emqdeploy export --with-baselines` makes
it, calibrated on random images like ours. Its own error stands beside it: the fused session against the same QDQ graph
as written, in float, because a CPU without VNNI saturates at full 8-bit range and is then fast at the wrong sums. Ours
is measured alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Samples, Subject, arguments, interleave, ratio_interval, show, subject, summary, write
from emqdeploy.grid import ALL_BITS
from emqdeploy.runtimes.onnx_session import create_session, session_options
from emqdeploy.workflows.baselines import export_float, static_quantization

BOUNDS = {"resnet18": 1.03, "mobilenet_v2": 1.05, "timm/vit_tiny_patch16_224": 1.05, "resnet20": 1.10}
THREADS = (1, 2)
STATIC, FLOAT = "static", "float32"

Images = NDArray[np.float32]


def float_model(network: Subject) -> bytes:
    """The float network as ONNX."""
    from emqdeploy.models import create_model

    plain = create_model(network.model, network.spec.classes, 3, network.input_shape[1])
    # The multi-bit network keeps the names of the float model, so its weights and shared statistics fit as they are.
    plain.load_state_dict(network.network.float_state())
    return export_float(plain, network.input_shape)


def static_quantized(model: bytes, images: Images) -> bytes:
    """Static post-training quantization as onnxruntime's own tools do it."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "static.onnx"
        source.write_bytes(model)
        static_quantization(source, target, images)
        return target.read_bytes()


def fused_error(model: bytes, arrays: dict[str, Any] | None, images: Images) -> float:
    """Largest difference of the fused session from the graph as written, in percent of the largest logit."""
    feed = {"images": images}
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


def measure(network: Subject, bits: Sequence[int], effort: Effort) -> list[dict[str, Any]]:
    """Times one network; returns one row per session and thread count."""
    checkpoint = network.checkpoint
    model = float_model(network)
    graphs: dict[str, tuple[bytes, dict[str, Any] | None]] = {
        FLOAT: (model, None),
        STATIC: (static_quantized(model, network.images(effort.calibration, seed=2)), None),
    }
    graphs |= {f"ours {width} bit": (checkpoint.skeleton, checkpoint.network.initializers(width)) for width in bits}
    probe = network.images(8, seed=3)
    errors = {name: fused_error(*graph, probe) for name, graph in graphs.items()}
    image = network.images(1)
    rows = []
    for threads in THREADS:
        samples = _time_group(graphs, threads, image, effort)
        rows += [_row(network.model, threads, name, samples, errors[name]) for name in graphs]
    return rows


def _time_group(
    graphs: dict[str, tuple[bytes, dict[str, Any] | None]], threads: int, image: Images, effort: Effort
) -> dict[str, Samples]:
    """Milliseconds by session, ``(creations, calls)``."""
    parts: dict[str, list[Samples]] = {name: [] for name in graphs}
    random = np.random.default_rng(0)
    for _ in range(effort.creations):
        calls = {}
        for name in random.permutation(list(graphs)):
            graph, arrays = graphs[name]
            calls[name] = _call(create_session(graph, session_options(threads), arrays), image)
        for name, samples in interleave(calls, effort.rounds, effort.block).items():
            parts[name].append(samples.reshape(1, -1))
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def _call(session: Any, image: Images) -> Callable[[], object]:
    feed = {"images": image}
    return lambda: session.run(("logits",), feed)


def _row(model: str, threads: int, name: str, samples: dict[str, Samples], error: float) -> dict[str, Any]:
    ratio = ratio_interval(samples[name], samples[STATIC])
    bound = BOUNDS.get(model) if name.startswith("ours") else None
    return {
        "model": model,
        "threads": threads,
        "session": name,
        **summary(samples[name]),
        "ratio_to_static": ratio.to_dict(),
        "shown": str(ratio),
        "bound": bound,
        "holds": None if bound is None else ratio.high <= bound,
        "fused_error_percent": error,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "latency")
    parser.add_argument("--models", nargs="+", default=list(BOUNDS))
    parser.add_argument("--bits", default="1,2,4,8", help="comma-separated bit-widths, or: all")
    options = parser.parse_args(argv)
    bits = ALL_BITS if options.bits == "all" else tuple(int(width) for width in options.bits.split(","))
    rows: list[dict[str, Any]] = []
    for model in options.models:
        # Small networks have short calls: more of them in a block keeps the wake-up's share small.
        block = 20 if model == "resnet20" else 5
        effort = Effort(2, 2, 3, 4) if options.quick else Effort(20, 4, block, 32)
        rows += measure(subject(model), bits, effort)
    shown = [
        (
            *(f"{row['model']}, {row['threads']} threads", row["session"], row["p50_ms"], row["shown"]),
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
