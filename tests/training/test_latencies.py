"""Measured savings of time as a cost of widths: what is read, what is refused, and where the search then narrows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.training.latencies import read_savings
from emqdeploy.training.relaxation import Relaxation, Sizes


def measured(path: Path, **layers: dict[str, float]) -> Path:
    """What ``mix --json`` prints of layers of a network that takes 10 ms."""
    rows = [{"name": name, "saves": {"latency": by_width}} for name, by_width in layers.items()]
    path.write_text(json.dumps({"whole": {"latency": 10.0}, "layers": rows}))
    return path


def test_widths_between_lie_on_a_line(tmp_path: Path) -> None:
    """Of 2 and 4 bits: 3 lies between, 6 on the way to 8 bits, 1 is worth what 2 is; some layers are slower."""
    path = measured(tmp_path / "m.json", a={"2": 3.0, "4": 1.0}, b={"4": -0.5})
    savings = read_savings(path, ["b", "a"])
    assert savings[1] == pytest.approx([0.3, 0.3, 0.3, 0.2, 0.1, 0.075, 0.05, 0.025, 0.0])
    assert savings[0, 4] == pytest.approx(-0.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is not what a measurement of latencies prints"),
        ("{", "is not what a measurement of latencies prints"),
        ("[" * 100_000, "is not what a measurement of latencies prints"),
        ('{"whole": {"latency": NaN}, "layers": []}', "a latency is nan"),
        ('{"whole": {"latency": 1}, "layers": [{"name": "a", "saves": {"latency": {"9": 1}}}]}', "a layer saves"),
        ('{"whole": {"latency": 1}, "layers": [{"name": "a", "saves": {"size": {"4": 1}}}]}', "latencies prints"),
        ('{"whole": {"latency": 1}, "layers": []}', "has no latency of layer 'a'; measure this network: emqdeploy mix"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    """In one sentence that says how to make the right one."""
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        read_savings(tmp_path / "m.json", ["a"])
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="FileNotFoundError"):
        read_savings(tmp_path / "absent.json", ["a"])


def test_layers_that_save_no_time_keep_their_bits(tmp_path: Path) -> None:
    """Of two layers, narrow bits of one alone are faster: a target of latency takes them there."""
    path = measured(tmp_path / "m.json", a={"2": 4.0, "4": 2.0}, b={"2": 0.0})
    sizes = Sizes(np.ones(2), np.ones(2), read_savings(path, ["a", "b"]))
    one = Relaxation(("a", "b"), sizes, Child("x", 8, 8), 2, True, "latency", 0.15, 4.0, 1.0, 200, 10)

    def loss(child: Child) -> float:
        return sum(4.0 ** -child.weights.of(name) for name in ("a", "b"))

    for _ in range(200):
        one.update(loss(one.child("x")), [loss(one.child("x", group)) for group in one.open()])
    one.settle()
    found: Any = one.child("x").weights
    assert one.cost() <= 0.8 + 1e-9
    assert (found.of("a"), found.of("b")) == (4, 8)
