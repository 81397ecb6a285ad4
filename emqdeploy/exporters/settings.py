"""What a user may ask of an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emqdeploy.errors import UsageError
from emqdeploy.format.child import ChildLike
from emqdeploy.format.segment import NATIVE
from emqdeploy.options import names, option

PLAIN, TRITON = "plain", "triton"
LAYOUTS = (PLAIN, TRITON)
RUNTIMES_OWN = "runtime"
KERNELS = (RUNTIMES_OWN, NATIVE)


@dataclass(frozen=True)
class ExportSettings:
    """One export.

    Attributes:
        path: a run, an ``.emq``, a bundle, or None for the latest run.
        bits: children as `emqdeploy.format.child.select_children` reads them, or a list of them; None takes every
            trained one.
        target: a name in `emqdeploy.workflows.handlers.TARGETS`.
        out: the bundle; None means ``bundle`` beside the checkpoint, or the bundle that the checkpoint lies in.
        storage: of ONNX files, a name in `emqdeploy.exporters.storage.STORAGES`.
        selector: also write one graph with an input ``bits``, a name in `emqdeploy.exporters.selector.SELECTORS`.
        kernels: whose compute: ``runtime``, or ``native`` for one ONNX graph of every child with operators of ours.
        layout: ``plain``, or ``triton`` for a model repository.
        with_baselines: also write the float network and the runtime's own int8 of it.
        model: the network's own function ``pkg.module:function``, named again so that torch may import it for them.
        fp16: float16 for what is not quantized (TensorRT).
        max_batch: the largest batch of a TensorRT engine.
        compute_capabilities: the GPUs that a TensorRT-RTX engine is built for, such as ``8.6``; empty means 8.6,
            8.9 and 12.0.
        allow_float: accept layers that the runtime computes in float.
        data: other images to prove files on, instead of the network's own data set.
        data_dir: where the data set's files lie.
        test_images: how many test images travel with the bundle; None takes some of a public data set and none of the
            user's own pictures.
    """

    path: Path | None = None
    bits: str | Sequence[ChildLike] | None = option(
        None, "Children to export, such as 2,4,8; every trained one by default."
    )
    target: str = option(
        "onnx", "What to export: onnx, tensorrt, tensorrt-rtx, tensorrt-onnx or openvino (see above).", also=("format",)
    )
    out: Path | None = option(
        None, "Folder of the bundle; 'bundle' beside the checkpoint by default. Files that are already there stay."
    )
    storage: str = option(
        "int8",
        "How ONNX files store weights: int8, packed (2 or 4 bits) or master (bit-planes that all children share).",
    )
    selector: str | None = option(None, "Write one more ONNX graph, whose input 'bits' chooses the child: if.")
    kernels: str = option(
        RUNTIMES_OWN, "native: write one ONNX graph with an input 'bits', for the operators of emqdeploy-native."
    )
    layout: str = option(PLAIN, "plain, or triton (a model repository for NVIDIA Triton).")
    with_baselines: bool = option(False, "Add the float32 network and onnxruntime's own int8 version of it.")
    model: str | None = option(
        None,
        "With --with-baselines: your own pkg.module:function again, because a file never decides what is imported.",
    )
    fp16: bool = option(False, "TensorRT: compute what is not quantized in float16.")
    max_batch: int = option(8, "TensorRT: largest batch that an engine takes.")
    compute_capabilities: tuple[str, ...] = option(
        (), "TensorRT-RTX: the GPUs to build for, 8.6,8.9,12.0 by default.", flag="compute-capability", parse=names
    )
    allow_float: bool = option(False, "Accept layers that the runtime computes in float.")
    data: str | None = option(None, "Images for the proof: a data set by name, or a .npz of a bundle.")
    data_dir: Path | None = option(None, "Folder with the data set's files.")
    test_images: int | None = option(
        None,
        "Number of test images to put into the bundle; 256 of a public data set by default, none of your own data.",
        least=0,
    )

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UsageError(f"unknown layout {self.layout!r}; known: {', '.join(LAYOUTS)}")
        if self.kernels not in KERNELS:
            raise UsageError(f"unknown kernels {self.kernels!r}; known: {', '.join(KERNELS)}")
        if self.kernels == NATIVE and (self.target, self.storage, self.layout) != ("onnx", "int8", PLAIN):
            raise UsageError("--kernels native writes one plain ONNX file; leave out --target, --storage and --layout")
        if self.max_batch < 1:
            raise UsageError(f"--max-batch is {self.max_batch}; give at least 1")
