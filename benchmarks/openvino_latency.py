"""Latency of our artefacts in OpenVINO against OpenVINO with NNCF int8 of the same float network; and which is faster.

Batch 1, one and two threads, one stream, the same images for all, in turns; models are compiled anew many times, see
`benchmarks/latency.py`. NNCF calibrates on random images like ours (default preset). OpenVINO with the graph of
onnxruntime's static quantization and our artefact in onnxruntime stand beside them, so the table says which of the two
runtimes is faster on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.common import Samples, Subject, arguments, interleave, ratio_interval, show, subject, summary, write
from benchmarks.latency import Effort, float_model, static_quantized
from emqdeploy.runtimes.graphs import filled_model
from emqdeploy.runtimes.onnx_session import create_session, session_options
from emqdeploy.runtimes.openvino_runtime import CPU_SETTINGS

BOUND = 1.03
THREADS = (1, 2)
NNCF = "OpenVINO, NNCF int8"


def nncf_quantized(model: bytes, images: Any) -> Any:
    """Post-training quantization as OpenVINO's own tools do it."""
    import nncf
    import openvino

    converted = openvino.Core().read_model(model)
    samples = [images[index : index + 1] for index in range(len(images))]
    return nncf.quantize(converted, nncf.Dataset(samples), subset_size=len(samples))


def measure(network: Subject, bits: Sequence[int], effort: Effort) -> list[dict[str, Any]]:
    """Times one network; returns one row per form and thread count."""
    import openvino

    core = openvino.Core()
    checkpoint = network.checkpoint
    arrays = {width: checkpoint.network.initializers(width) for width in bits}
    float_bytes = float_model(network)
    calibration = network.images(effort.calibration, seed=2)
    models = {
        "OpenVINO, float32": core.read_model(float_bytes),
        NNCF: nncf_quantized(float_bytes, calibration),
        "OpenVINO, onnxruntime's static int8": core.read_model(static_quantized(float_bytes, calibration)),
    }
    models |= {
        f"OpenVINO, ours {width} bit": core.read_model(filled_model(checkpoint.skeleton, arrays[width]))
        for width in bits
    }
    rows = []
    for threads in THREADS:
        settings = {**CPU_SETTINGS, "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        parts: dict[str, list[Samples]] = {}
        for _ in range(effort.creations):
            calls = {
                name: _openvino_call(core.compile_model(model, "CPU", settings), network.images(1))
                for name, model in models.items()
            }
            for width in bits:
                session = create_session(checkpoint.skeleton, session_options(threads), arrays[width])
                calls[f"onnxruntime, ours {width} bit"] = _session_call(session, network.images(1))
            for name, samples in interleave(calls, effort.rounds, effort.block).items():
                parts.setdefault(name, []).append(samples.reshape(1, -1))
        times = {name: np.concatenate(blocks) for name, blocks in parts.items()}
        rows += [_row(network.model, threads, name, times) for name in times]
    return rows


def _openvino_call(compiled: Any, image: Any) -> Callable[[], object]:
    request = compiled.create_infer_request()
    return lambda: request.infer([image], share_inputs=True, share_outputs=True)


def _session_call(session: Any, image: Any) -> Callable[[], object]:
    feed = {"images": image}
    return lambda: session.run(("logits",), feed)


def _row(model: str, threads: int, name: str, times: dict[str, Samples]) -> dict[str, Any]:
    ratio = ratio_interval(times[name], times[NNCF])
    bound = BOUND if name.startswith("OpenVINO, ours") else None
    return {
        "model": model,
        "threads": threads,
        "form": name,
        **summary(times[name]),
        "ratio_to_nncf": ratio.to_dict(),
        "shown": str(ratio),
        "bound": bound,
        "holds": None if bound is None else ratio.high <= bound,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "openvino_latency")
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--bits", default="2,8", help="comma-separated bit-widths")
    options = parser.parse_args(argv)
    bits = tuple(int(width) for width in options.bits.split(","))
    effort = Effort(1, 2, 3, 8) if options.quick else Effort(25, 3, 5, 32)
    rows: list[dict[str, Any]] = []
    for model in options.models:
        rows += measure(subject(model), bits, effort)
    shown = [
        (
            f"{row['model']}, {row['threads']} threads",
            row["form"],
            row["p50_ms"],
            row["shown"],
            "" if row["bound"] is None else f"{'holds' if row['holds'] else 'MISSED'} ({row['bound']:.2f})",
        )
        for row in rows
    ]
    show("Latency in OpenVINO, batch 1", ("network", "form", "p50 ms", "ratio to NNCF [95 %]", "bound"), shown)
    for model in options.models:
        for threads in THREADS:
            fastest = min(
                (row for row in rows if row["model"] == model and row["threads"] == threads and "ours" in row["form"]),
                key=lambda row: row["p50_ms"],
            )
            print(f"{model}, {threads} threads: fastest of ours is {fastest['form']} ({fastest['p50_ms']:.2f} ms)")
    write(options.json, "openvino_latency", options.quick, rows)


if __name__ == "__main__":
    main()
