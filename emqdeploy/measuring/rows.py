"""What a bench measured, as types: a row of its table, a switch of its trace.

Writing makes plain values of them, reading checks types and bounds. A value that was not measured is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from emqdeploy.errors import UsageError
from emqdeploy.format.bundle import Role
from emqdeploy.format.card import Finite, Name, Percent, Record, Size, Text, WidthsRecord, convert
from emqdeploy.format.child import Child
from emqdeploy.format.precision import FLOAT32, INT8, LayerPrecision

Amount = Annotated[float, Meta(ge=0, le=1e15)]
Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
Reason = Annotated[str, Meta(max_length=10_000)]
"""A sentence for people, which may quote what a library said."""


class Interval(Record, frozen=True):
    """Where the median lies at a confidence level."""

    low: Amount
    high: Amount
    level: float
    method: Text


class Latency(Record, frozen=True):
    """Percentiles of samples in milliseconds."""

    p50: Amount
    p90: Amount
    p95: Amount
    p99: Amount
    mean: Amount
    min: Amount
    max: Amount
    samples: Count
    interval: Interval | None = None


class Ratio(Record, frozen=True):
    """A ratio with its 95 % interval."""

    ratio: Amount
    low: Amount
    high: Amount


class EnergyUse(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What an inference needs, or ``not_measured``: why nobody knows.

    Attributes:
        not_measured: the reason; then everything else is None.
        source: the sensor.
        rail: what it measures, as the device calls it.
        rule: how the figure comes about.
        energy_mj_per_inference: idle power subtracted.
        gross_mj_per_inference: idle power included.
        idle_power_w: before and after.
        power_w: at work.
        sample_period_ms: between two readings.
        samples: readings.
        seconds: of work.
        inferences: in that time.
        disturbed: what was wrong with the readings.
    """

    not_measured: Reason | None = None
    source: Text | None = None
    rail: Text | None = None
    rule: Reason | None = None
    energy_mj_per_inference: Finite | None = None
    gross_mj_per_inference: Finite | None = None
    idle_power_w: Finite | None = None
    power_w: Finite | None = None
    sample_period_ms: Amount | None = None
    samples: Count | None = None
    seconds: Amount | None = None
    inferences: Count | None = None
    disturbed: list[Reason] | None = None


class BenchRow(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A row of a bench: one child, or one baseline, in one runtime. Scenarios write into it.

    Attributes:
        label: shown to people, unique: ``4 bits``, ``mixed``, ``float32``, ``4 bits (openvino)``.
        kind: ``child``, ``selector`` or ``baseline``.
        child: its name, None for a baseline, as are the next three.
        weights: bits of its weights: a number, or a map of layers whose ``*`` stands for the rest.
        activations: bits of its activations, likewise.
        bits: its nominal weight width, to sort and to plot by.
        trained: whether training visited it, None for a baseline.
        flavour: of a bundle's artefact: ``int8``, ``packed``, ``if``, ``float32``, ...
        runtime: the adapter's name.
        latency_ms: of one image; host clock, the whole call.
        clocks_ms: further clocks where the runtime has them: ``device``, ``enqueue``.
        ratio_to_first: this row's p50 over the first row's, rounds paired.
        times_as_fast: by what it is compared with (``int8``, ``float32``), onnxruntime's p50 of that over this row's,
            rounds paired: above 1 this row is faster.
        accuracy: percent, from the artefact as it runs here.
        reference_accuracy: percent, torch's as recorded at training.
        accuracy_drop: percentage points lost against it.
        size_bytes: of the file, what this row needs of it.
        rss_bytes: that loading it and running it once adds to a fresh process.
        load_ms: from the file to a network that answers, in a fresh process.
        first_output_ms: of the first inference there.
        stored_as: the type of the layers' weights; the narrowest and the widest where they differ.
        computed_as: how the layers multiply.
        integer_layers: how many run as integer kernels.
        layers: how many there are.
        per_layer: the same, layer by layer.
        energy: what an inference needs.
        samples_ms: every latency sample, in order; rounds of ``scenarios.single.block`` belong together.
        disturbed: reasons why these figures deserve less trust, empty when none was seen.
    """

    label: Name
    kind: Role
    child: Name | None
    weights: WidthsRecord | None
    activations: WidthsRecord | None
    bits: int | None
    trained: bool | None
    flavour: Text | None
    runtime: Name
    latency_ms: Latency | None = None
    clocks_ms: dict[Text, Latency] = msgspec.field(default_factory=dict)
    ratio_to_first: Ratio | None = None
    times_as_fast: dict[Text, Ratio] = msgspec.field(default_factory=dict)
    accuracy: Percent | None = None
    reference_accuracy: Percent | None = None
    accuracy_drop: Finite | None = None
    size_bytes: Size | None = None
    rss_bytes: int | None = None
    load_ms: Amount | None = None
    first_output_ms: Amount | None = None
    stored_as: Text | None = None
    computed_as: Text | None = None
    integer_layers: Count | None = None
    layers: Count | None = None
    per_layer: list[LayerPrecision] | None = None
    energy: EnergyUse = EnergyUse(not_measured="the run was interrupted before")
    samples_ms: list[Amount] = msgspec.field(default_factory=list)
    disturbed: list[Reason] = msgspec.field(default_factory=list)

    def find_child(self) -> Child | None:
        """The child of the row; None for a baseline.

        Raises:
            ValueError: its widths are missing or out of range.
        """
        if self.child is None:
            return None
        if self.weights is None or self.activations is None:
            raise ValueError(f"row {self.label!r} has no widths")
        try:
            return Child(self.child, self.weights, self.activations)
        except UsageError as error:
            raise ValueError(str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


class Switch(Record, frozen=True, kw_only=True):
    """A timed switch.

    Attributes:
        previous: name of the child in use before; ``from`` in JSON.
        child: name of the one that was switched to; ``to`` in JSON.
        runtime: the adapter's name.
        kind: of the rows that it switches between.
        set_bits_ms: the call.
        first_output_ms: of the first inference after it.
        steady_ms: median of those that follow.
        t_s: when it was over, since the scenario's start.
    """

    previous: Name = msgspec.field(name="from")
    child: Name = msgspec.field(name="to")
    runtime: Name
    kind: Role
    set_bits_ms: Amount
    first_output_ms: Amount
    steady_ms: Amount
    t_s: Amount

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


def compared_with(rows: Sequence[BenchRow]) -> list[str]:
    """What the speed of rows is compared with: onnxruntime's int8 and float32, as far as they were timed."""
    return [name for name in (INT8, FLOAT32) if any(name in row.times_as_fast for row in rows)]


def rows_of(result: Mapping[str, Any]) -> list[BenchRow]:
    """The rows of a result as `emqdeploy.measuring.result` describes it."""
    return convert(list[BenchRow], result["rows"])


def switches_of(result: Mapping[str, Any]) -> list[Switch]:
    """The switches of a result, in order."""
    return convert(list[Switch], result["switches"])
