"""Latency of our artefacts in OpenVINO against OpenVINO with NNCF int8 of the same float network; and which is faster.

Batch 1, one and two threads, one stream, the same images for all, in turns; models are compiled anew many times
(`interleave_anew`). NNCF calibrates on random images like ours (default preset). OpenVINO with the graph of
onnxruntime's static quantization and our artefact in onnxruntime stand beside them, so the table says which of the two
runtimes is faster on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import EVERY, Subject, arguments, interleave_anew, show, subject, with_interval, write
from benchmarks.latency import Effort, float_model, session_call, static_quantized
from emqdeploy.format.child import Child, select_children
from emqdeploy.graph.filling import filled_model
from emqdeploy.measuring.statistics import median_ratio, percentiles
from emqdeploy.runtimes.adapters.openvino_runtime import CPU_SETTINGS

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


def measure(network: Subject, children: Sequence[Child], effort: Effort) -> list[dict[str, Any]]:
    """Times one network; returns one row per form and thread count."""
    import openvino

    core = openvino.Core()
    checkpoint = network.checkpoint
    arrays = {child: checkpoint.network.initializers(child) for child in children}
    float_bytes = float_model(network)
    calibration = network.images(effort.calibration, seed=2)
    models = {
        "OpenVINO, float32": core.read_model(float_bytes),
        NNCF: nncf_quantized(float_bytes, calibration),
        "OpenVINO, onnxruntime's static int8": core.read_model(static_quantized(float_bytes, calibration)),
    }
    models |= {
        f"OpenVINO, ours, {child}": core.read_model(filled_model(checkpoint.skeleton, filling).SerializeToString())
        for child, filling in arrays.items()
    }
    image = network.images(1)
    rows = []
    for threads in THREADS:
        settings = {**CPU_SETTINGS, "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}

        def make(threads: int = threads, settings: dict[str, Any] = settings) -> dict[str, Callable[[], object]]:
            compiled = {name: core.compile_model(model, "CPU", settings) for name, model in models.items()}
            calls = {name: _openvino_call(model, image) for name, model in compiled.items()}
            for child, filling in arrays.items():
                calls[f"onnxruntime, ours, {child}"] = session_call((checkpoint.skeleton, filling), threads, image)
            return calls

        samples = interleave_anew(make, effort.creations, effort.rounds, effort.block)
        ratios = {name: median_ratio(taken, samples[NNCF], effort.calls) for name, taken in samples.items()}
        rows += [_row(network.model, threads, name, samples[name], ratios[name]) for name in samples]
    return rows


def _openvino_call(compiled: Any, image: Any) -> Callable[[], object]:
    request = compiled.create_infer_request()
    return lambda: request.infer([image], share_inputs=True, share_outputs=True)


def _row(model: str, threads: int, name: str, samples: Sequence[float], ratio: Mapping[str, float]) -> dict[str, Any]:
    bound = BOUND if name.startswith("OpenVINO, ours") else None
    return {
        "model": model,
        "threads": threads,
        "form": name,
        "latency_ms": percentiles(samples),
        "ratio_to_nncf": ratio,
        "bound": bound,
        "holds": None if bound is None else ratio["high"] <= bound,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "openvino_latency")
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--bits", default="2,8", help="children, or: all")
    options = parser.parse_args(argv)
    children = select_children(EVERY, options.bits)
    effort = Effort(1, 2, 3, 8) if options.quick else Effort(25, 3, 5, 32)
    rows: list[dict[str, Any]] = []
    for model in options.models:
        rows += measure(subject(model), children, effort)
    shown = [
        (
            f"{row['model']}, {row['threads']} threads",
            row["form"],
            row["latency_ms"]["p50"],
            with_interval(row["ratio_to_nncf"]),
            "" if row["bound"] is None else f"{'holds' if row['holds'] else 'MISSED'} ({row['bound']:.2f})",
        )
        for row in rows
    ]
    show("Latency in OpenVINO, batch 1", ("network", "form", "p50 ms", "ratio to NNCF [95 %]", "bound"), shown)
    for model in options.models:
        for threads in THREADS:
            fastest = min(
                (row for row in rows if row["model"] == model and row["threads"] == threads and "ours" in row["form"]),
                key=lambda row: row["latency_ms"]["p50"],
            )
            p50_ms = fastest["latency_ms"]["p50"]
            print(f"{model}, {threads} threads: fastest of ours is {fastest['form']} ({p50_ms:.2f} ms)")
    write(options.json, "openvino_latency", options.quick, rows)


if __name__ == "__main__":
    main()
