"""A policy around real onnxruntime sessions: it serves, it switches them, and what is impossible it says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.measuring.choices import measured_options, thread_modes
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.policy import Governed, Setting

from ...conftest import Deployed

ACCURACY = {2: 98.0, 4: 98.9, 8: 99.2}


def sessions(small: Deployed, threads: int = 1) -> OnnxRuntime:
    """Three resident bit-widths."""
    return OnnxRuntime(small.checkpoint, children=tuple(ACCURACY), threads=threads)


def test_five_lines_of_a_users_loop(small: Deployed) -> None:
    """What the documentation shows: outputs are those of the runtime, the most accurate width serves."""
    runtime = sessions(small)
    network = Governed(runtime, "latency_p99=5s,accuracy>=98.5", accuracy=ACCURACY)
    outputs = [network(small.images[:1]) for _ in range(20)]
    assert network.setting == Setting(Child.of(8))
    runtime.set_bits(8)
    np.testing.assert_array_equal(outputs[-1], runtime(small.images[:1]))
    assert network.last is not None
    assert network.last.latency_ms > 0


def test_an_impossible_budget_keeps_the_floor_and_says_so(small: Deployed) -> None:
    """One microsecond is less than any call takes: no width below the floor is tried, and the log has the figures."""
    network = Governed(sessions(small), "latency_p50=1us,accuracy>=98.5", accuracy=ACCURACY)
    used = set()
    while network.policy.state != "infeasible":
        network(small.images[:1])
        used.add(network.setting.child.bits)
    assert used <= {4, 8}
    assert "misses latency_p50<=0.001ms by" in network.policy.log[-1].reason


def test_settings_are_measured_and_switched_for_real(small: Deployed) -> None:
    """Two modes are two runtimes; a switch goes through `set_bits` of the one that serves next."""
    modes = {name: sessions(small, threads) for name, threads in thread_modes(2).items()}
    options = measured_options(modes, list(ACCURACY), ACCURACY, small.images[:1], seconds=0.01)
    assert {option.setting for option in options} == {
        Setting(Child.of(bits), mode) for bits in ACCURACY for mode in modes
    }
    assert all(option.latency_ms["p50"] > 0 for option in options)
    power = {setting: 5.0 for setting in (option.setting for option in options)}

    def sensor() -> Mapping[str, float | None]:
        # The device reports too much power until another width serves.
        return {"power_w": 9.0 if network.setting.child.bits == 8 else power[network.setting]}

    network = Governed(modes, "power=6W", options, sensor=sensor)
    assert network.setting.child.bits == 8
    while network.setting.child.bits == 8:
        network(small.images[:1])
    assert network.decision is not None
    assert "power is 9 W, over 6 W" in network.decision.reason
    assert modes[network.setting.mode].bits == network.setting.child.bits


def test_a_sensor_that_breaks_does_not_stop_the_network(small: Deployed) -> None:
    """It disappears in mid-run: inference goes on."""

    def sensor() -> Mapping[str, float | None]:
        raise OSError("no such device")

    network = Governed(sessions(small), "power=6W", accuracy=ACCURACY, sensor=sensor)
    for _ in range(10):
        assert network(small.images[:1]).shape == (1, 10)


def test_a_policy_that_does_not_parse_is_refused_before_anything_runs(small: Deployed) -> None:
    """The sentence of the parser reaches the user."""
    with pytest.raises(UsageError, match="no unit"):
        Governed(sessions(small), "latency_p99=20", accuracy=ACCURACY)
