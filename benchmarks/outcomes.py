"""What can become of an architecture, in the words of `docs/architectures.md`."""

from __future__ import annotations

from dataclasses import dataclass, field

INTEGER, LAYERS_IN_FLOAT = "integer", "some layers in float"
REFUSED, LATE, CRASH, WRONG = "refused", "refused late", "crash", "wrong"


@dataclass
class Outcome:
    """What became of one architecture.

    Attributes:
        name: of the architecture.
        kind: likewise.
        size: of its images, pixels.
        outcome: one of this module's words.
        stage: the last one that it came to.
        warning: what `quantize` says about the 8-bit child where it is far from the float model.
        sentence: why it was refused, what `verify` found wrong, or the last line of a traceback.
        layers: convolutions and linear layers of the checkpoint.
        integer_layers: those that onnxruntime computes in integers.
        float_layers: names of the others.
        float_operators: operators between the layers that compute in float, by type.
        decibels: of the integer reference's logits against the untouched float model's, at 8 bits.
        naive_decibels: of the naive int8 of the same network.
        codes: compared in onnxruntime.
        differing: of those.
        seconds: of processor time, without loading packages.
    """

    name: str
    kind: str
    size: int
    outcome: str = INTEGER
    stage: str = "build"
    warning: str = ""
    sentence: str = ""
    layers: int = 0
    integer_layers: int = 0
    float_layers: list[str] = field(default_factory=list)
    float_operators: dict[str, int] = field(default_factory=dict)
    decibels: float | None = None
    naive_decibels: float | None = None
    codes: int = 0
    differing: int = 0
    seconds: float = 0.0
