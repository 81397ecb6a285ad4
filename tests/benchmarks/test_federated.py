"""The benchmark of messages: what it counts, and when a loss counts as reached."""

from __future__ import annotations

from typing import Any

from benchmarks.federated import CLIENTS, MESSAGES, bits_to_reach, missing, simulated, table


def row(compress: str, loss: list[float], bits: list[int]) -> dict[str, Any]:
    """A measured row of two processes."""
    about = {"processes": 2, "mode": "every step", "compress": compress, "bucket": 0, "levels": [0, 0]}
    return {**about, "loss": loss, "bits": bits, "accuracy": 90.0}


def test_bits_are_those_sent_until_the_loss_was_reached() -> None:
    """At the end of the epoch that reached it; where none did, the table says so instead of a share."""
    whole, few = row("none", [2.0, 0.4, 0.3], [100, 200, 300]), row("4", [2.0, 1.0, 0.9], [10, 20, 30])
    assert bits_to_reach(whole, 0.5) == 200
    assert bits_to_reach(few, 0.5) is None
    assert "not reached |  | 0.900" in table([whole, few])
    done = [{"processes": CLIENTS, "mode": "simulated", "compress": "none", "bucket": 0}]
    assert missing(done, CLIENTS) == [("simulated", *message) for message in MESSAGES[1:]]


def test_simulated_clients_send_messages_of_their_own() -> None:
    """Two rounds: as many bits as their messages have, and fewer in few bits than as they are."""
    whole, few = (simulated(message, 0, 2) for message in ("none", "adaptive"))
    numbers = 64 * 32 + 32 + 32 * 10 + 10
    assert whole["bits"] == [32 * numbers, 64 * numbers]
    assert few["bits"][0] == 8 * (4 + -(-3 * numbers // 8))
    assert few["levels"][0] == 2
