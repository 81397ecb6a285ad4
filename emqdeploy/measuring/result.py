"""What a bench hands back: one dictionary that JSON can hold, the contract between measuring and reporting.

Times are milliseconds, sizes bytes, power watts, energy millijoules, accuracy percent. A value that was not measured is
None, or a dictionary ``{"not_measured": why}`` where a reason is at hand; it is never 0. Children stand by their names.

======================  ==========================================================================================
``schema``              2; a reader refuses any other number
``command``             the command line that makes this measurement again
``settings``            `BenchSettings.to_dict`: everything that ``--replay`` needs, nothing of how to reach a machine
``started``             UTC, ISO 8601; ``seconds``: how long all of it took
``environment``         ``machine``, ``cpu``, ``cpu_flags``, ``cores``, ``system``, ``python``, ``packages``;
                        ``device``: name and what it is; ``before``, ``after``: ``load_average``, ``frequency_mhz``,
                        ``temperature_c`` by zone, ``throttling``, on a Jetson also ``power_mode`` and ``fan``
``source``              ``path``, ``kind`` (``checkpoint``, ``onnx``, ``bundle``), ``model``, ``data``, ``trained``,
                        ``sha256``, ``images``: test images that accuracy was measured on, or None
``rows``                what was measured, in the order of the table, see `emqdeploy.measuring.rows.BenchRow`
``resident``            all children of a runtime in one process: ``runtime``, ``kind``, ``flavour``, ``children``,
                        ``rss_bytes``, ``load_ms``, ``size_bytes``
``scenarios``           by name, what the scenario adds, or ``failed``: why it broke off. ``single``: ``clock``,
                        ``block``, ``warm_up``, ``monitor``, ``runtimes`` (the same child in two of them);
                        ``offline``: ``rows`` of label, batch and ``images_per_second`` or ``not_measured``;
                        ``switch``: ``rows``, a summary per child; and those that others register
``switches``            every timed switch in order, see `emqdeploy.measuring.rows.Switch`
``notes``               sentences a reader of the figures should know
``complete``            False where the run was interrupted or a scenario failed: what is there was measured
======================  ==========================================================================================
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from emqdeploy.errors import EmqError
from emqdeploy.files import LARGEST_TEXT, atomic_write_text, read_bytes
from emqdeploy.format.card import Name, Positive, Text, convert, damaged, encode
from emqdeploy.measuring.rows import Amount, BenchRow, Count, Latency, Reason, Switch

SCHEMA = 2


class _Environment(msgspec.Struct):
    """The machine; its state before and after is whatever it tells of itself."""

    cpu: Reason
    cores: int | None
    system: Reason
    python: Text
    packages: dict[Text, Text | None]
    machine: Text | None = None
    cpu_flags: list[Text] = []
    device: dict[str, Any] = {}
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


class _Source(msgspec.Struct):
    """What was measured."""

    path: Reason
    model: Text
    data: Text | None
    images: Positive | None


class _Single(msgspec.Struct):
    block: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None


class _Batch(msgspec.Struct):
    label: Name
    batch: Annotated[int, Meta(ge=1, le=1 << 20)]
    images_per_second: Positive | msgspec.UnsetType = msgspec.UNSET


class _Batches(msgspec.Struct):
    rows: list[_Batch] = []


class _Switched(msgspec.Struct):
    label: Name
    set_bits_ms: Latency | None = None
    first_output_ms: Latency | None = None


class _Switches(msgspec.Struct):
    rows: list[_Switched] = []


class _Resident(msgspec.Struct):
    runtime: Name
    children: list[Name]
    flavour: Text | None = None
    rss_bytes: int | None = None
    load_ms: Amount | None = None


class _Setting(msgspec.Struct):
    label: Name
    bits: int


class _Phase(msgspec.Struct):
    name: Name
    start_s: Amount
    end_s: Amount
    load: int
    inferences: Count
    switches: Count
    p50_ms: Amount | None
    p99_ms: Amount | None
    share_over: Amount | None
    recovery_s: Amount | None


class _Limit(msgspec.Struct):
    quantity: Name
    limit: Positive


class _Decision(msgspec.Struct):
    at_s: Amount
    kind: Name
    setting: Text
    reason: Reason


class _Adaptive(msgspec.Struct):
    policy: Text
    settings: list[_Setting]
    phases: list[_Phase]
    limits: list[_Limit]
    decisions: list[_Decision]
    t_s: list[Amount]
    latency_ms: list[Amount]
    setting: list[Count]

    def __post_init__(self) -> None:
        if not len(self.t_s) == len(self.latency_ms) == len(self.setting):
            raise ValueError("the adaptive scenario has not one time, latency and setting per inference")
        if any(index >= len(self.settings) for index in self.setting):
            raise ValueError("the adaptive scenario names a setting that it does not have")


class _Scenarios(msgspec.Struct):
    """What the reports draw of each; those that others register are theirs."""

    single: _Single = msgspec.field(default_factory=_Single)
    offline: _Batches = msgspec.field(default_factory=_Batches)
    switch: _Switches = msgspec.field(default_factory=_Switches)
    adaptive: _Adaptive | None = None


class _Outline(msgspec.Struct):
    """What every result has, and its types."""

    settings: dict[str, Any]
    command: str
    started: Text
    seconds: Amount | None
    environment: _Environment
    source: _Source
    rows: list[BenchRow]
    resident: list[_Resident]
    scenarios: dict[Name, dict[str, Any]]
    switches: list[Switch]
    notes: list[Reason]
    complete: bool


def save_result(path: Path, result: dict[str, Any]) -> None:
    """Writes a result as JSON, whole or not at all."""
    atomic_write_text(path, json.dumps(result) + "\n")


def load_result(path: Path) -> dict[str, Any]:
    """Reads a result that `save_result` or ``bench --json`` wrote.

    Raises:
        EmqError: it is not there, not JSON, not a bench, damaged, or of another version of emqdeploy.
    """
    data = read_bytes(path, LARGEST_TEXT, "name a file that bench --out wrote")
    try:
        result = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise EmqError(f"cannot read {path}: it is not text; name a file that bench --out wrote") from error
    except (ValueError, RecursionError) as error:
        raise EmqError(f"{path} is not JSON ({error}); name a file that bench --out wrote") from error
    return check_result(path, result)


def check_result(path: Path, result: Any) -> dict[str, Any]:
    """Returns what was read from a file if it is a result.

    Raises:
        EmqError: it is something else, damaged, or of another version of emqdeploy.
    """
    if not isinstance(result, dict) or not isinstance(result.get("schema"), int):
        raise EmqError(f"{path} is not a result of emqdeploy bench; make one with: emqdeploy bench --out {path.name}")
    if result["schema"] != SCHEMA:
        remedy = "update emqdeploy to read it" if result["schema"] > SCHEMA else "measure again with: emqdeploy bench"
        raise EmqError(f"{path} has schema {result['schema']}, this emqdeploy reads {SCHEMA}; {remedy}")
    try:
        encode(result)  # halves of characters, which JSON can spell, cannot be shown or written anywhere
        found = convert(_Outline, result)
        drawn = {name: one for name, one in found.scenarios.items() if set(one) != {"failed"}}
        convert(_Scenarios, drawn)
        names = {None if child is None else child.name for child in (row.find_child() for row in found.rows)}
        strange = {name for one in found.switches for name in (one.previous, one.child)} - names
        if strange:
            raise ValueError(f"a switch names child {min(strange)!r}, which no row has")
    except (ValueError, RecursionError) as error:
        raise damaged(path, error, "measure again") from error
    return result
