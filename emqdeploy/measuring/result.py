"""What a bench hands back: one dictionary that JSON can hold, the contract between measuring and reporting.

Times are milliseconds, sizes bytes, power watts, energy millijoules, accuracy percent. A value that was not measured is
None, or a dictionary ``{"not_measured": why}`` where a reason is at hand; it is never 0.

======================  ==========================================================================================
``schema``              1; a reader refuses a larger number
``command``             the command line that makes this measurement again
``settings``            `BenchSettings.to_dict`: everything that ``--replay`` needs
``started``             UTC, ISO 8601; ``seconds``: how long all of it took
``environment``         ``machine``, ``cpu``, ``cpu_flags``, ``cores``, ``system``, ``python``, ``packages``;
                        ``device``: name and what it is; ``before``, ``after``: ``load_average``, ``frequency_mhz``,
                        ``temperature_c`` by zone, ``throttling``, on a Jetson also ``power_mode`` and ``fan``
``source``              ``path``, ``kind`` (``checkpoint``, ``onnx``, ``bundle``), ``model``, ``data``, ``sha256``,
                        ``images``: test images that accuracy was measured on, or None
``rows``                what was measured, in the order of the table; see below
``resident``            all widths of a runtime in one process: ``runtime``, ``kind``, ``flavour``, ``bits``,
                        ``rss_bytes``, ``load_ms``, ``size_bytes``
``scenarios``           by name, what the scenario adds, or ``failed``: why it broke off. ``single``: ``clock``,
                        ``block``, ``warm_up``, ``monitor``, ``runtimes`` (the same bit-width in two of them);
                        ``offline``: ``rows`` of label, batch and ``images_per_second`` or ``not_measured``;
                        ``switch``: ``rows``, a summary per target; and those that others register
``switches``            every timed switch in order: ``from``, ``to``, ``runtime``, ``set_bits_ms``,
                        ``first_output_ms`` (of the first inference after the switch), ``steady_ms`` (median of those
                        that follow), ``t_s`` (since the scenario's start)
``notes``               sentences a reader of the figures should know
``complete``            False where the run was interrupted or a scenario failed: what is there was measured
======================  ==========================================================================================

A row:

======================  ==========================================================================================
``label``               shown to people, unique: ``4 bits``, ``float32``, ``4 bits (openvino)``
``kind``                ``width``, ``baseline`` or ``selector``
``bits``, ``trained``   weight bits, and whether training visited them; None for baselines
``flavour``             of a bundle's artefact: ``int8``, ``packed``, ``if``, ``float32``, ...; else None
``runtime``             the adapter's name
``latency_ms``          ``p50``, ``p90``, ``p95``, ``p99``, ``mean``, ``min``, ``max``, ``samples``; ``interval``:
                        ``low`` and ``high`` of the median at 95 %; host clock, the whole call, batch 1
``clocks_ms``           further clocks where the runtime has them: ``device``, ``enqueue``, each with percentiles
``ratio_to_first``      ``ratio``, ``low``, ``high``: this row's p50 over the first row's, rounds paired
``accuracy``            percent, from the artefact as it runs here
``reference_accuracy``  percent, torch's as recorded at training; ``accuracy_drop``: percentage points lost against it
``size_bytes``          of the file, what this row needs of it
``rss_bytes``           that loading it and running it once adds to a fresh process
``load_ms``             from the file to a network that answers, in a fresh process; ``first_output_ms``: of the first
                        inference there
``stored_as``, ``computed_as``, ``integer_layers``, ``layers``, ``per_layer``   what the weights are, layer by layer
``energy``              ``source``, ``rail``, ``rule``, ``energy_mj_per_inference`` (idle subtracted),
                        ``gross_mj_per_inference``, ``idle_power_w``, ``power_w``, ``sample_period_ms``, ``samples``,
                        ``seconds``, ``inferences``, ``disturbed``; or ``not_measured``
``samples_ms``          every latency sample, in order; rounds of ``scenarios.single.block`` belong together
``disturbed``           reasons why this row's figures deserve less trust, empty when none was seen
======================  ==========================================================================================
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError
from emqdeploy.files import atomic_write_text

SCHEMA = 1

_PARTS = ("settings", "environment", "source", "rows", "scenarios", "switches", "complete")
_ROW = ("label", "kind", "bits", "runtime", "latency_ms", "accuracy", "samples_ms", "disturbed")


def save_result(path: Path, result: dict[str, Any]) -> None:
    """Writes a result as JSON, whole or not at all."""
    atomic_write_text(path, json.dumps(result) + "\n")


def load_result(path: Path) -> dict[str, Any]:
    """Reads a result that `save_result` or ``bench --json`` wrote.

    Raises:
        EmqError: it is not there, not JSON, not a bench, or of a newer emqdeploy.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise EmqError(f"cannot read {path}: {reason}; name a file that bench --out wrote") from error
    except ValueError as error:
        raise EmqError(f"{path} is not JSON ({error}); name a file that bench --out wrote") from error
    return check_result(path, result)


def check_result(path: Path, result: Any) -> dict[str, Any]:
    """Returns what was read from a file if it is a result.

    Raises:
        EmqError: it is something else, damaged, or of a newer emqdeploy.
    """
    if not isinstance(result, dict) or not isinstance(result.get("schema"), int):
        raise EmqError(f"{path} is not a result of emqdeploy bench; make one with: emqdeploy bench --out {path.name}")
    if result["schema"] > SCHEMA:
        raise EmqError(
            f"{path} has schema {result['schema']}, this emqdeploy knows up to {SCHEMA}; update emqdeploy to read it"
        )
    missing = [part for part in _PARTS if part not in result]
    if missing:
        raise EmqError(f"{path} is damaged: it lacks {', '.join(missing)}; measure again")
    if not isinstance(result["rows"], list) or not all(_is_row(row) for row in result["rows"]):
        raise EmqError(f"{path} is damaged: its rows lack {', '.join(_ROW[:-1])} or {_ROW[-1]}; measure again")
    return result


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(part in row for part in _ROW)
