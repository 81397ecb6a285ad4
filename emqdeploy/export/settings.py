"""What a user may ask of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emqdeploy.errors import UsageError

PLAIN, TRITON = "plain", "triton"
LAYOUTS = (PLAIN, TRITON)


@dataclass(frozen=True)
class ExportSettings:
    """One export.

    Attributes:
        path: a run, an ``.emq``, or None for the latest run.
        bits: bit-widths; None takes every trained one.
        target: a name in `emqdeploy.export.targets.TARGETS`.
        out: the bundle; None means ``bundle`` beside the checkpoint, or the bundle that the checkpoint lies in.
        storage: of ONNX files, a name in `emqdeploy.export.storage.STORAGES`.
        selector: also write one graph with an input ``bits``: ``if`` or ``derive``.
        layout: ``plain``, or ``triton`` for a model repository.
        with_baselines: also write the float network and the runtime's own int8 of it.
        fp16: float16 for what is not quantized (TensorRT).
        max_batch: the largest batch of a TensorRT engine.
        compute_capabilities: the GPUs that a TensorRT-RTX engine is built for, such as ``8.6``; empty means 8.6,
            8.9 and 12.0.
        allow_float: accept layers that the runtime computes in float.
        data_dir: where the data set's files lie.
    """

    path: Path | None = None
    bits: tuple[int, ...] | None = None
    target: str = "onnx"
    out: Path | None = None
    storage: str = "int8"
    selector: str | None = None
    layout: str = PLAIN
    with_baselines: bool = False
    fp16: bool = False
    max_batch: int = 8
    compute_capabilities: tuple[str, ...] = ()
    allow_float: bool = False
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UsageError(f"unknown layout {self.layout!r}; known: {', '.join(LAYOUTS)}")
        if self.max_batch < 1:
            raise UsageError(f"--max-batch is {self.max_batch}; give at least 1")
