"""Rounds of processes that train apart, and compressed gradients: real processes, over gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emqdeploy.cli import main
from emqdeploy.training.compression import bits_of
from tests.training.test_distributed import (
    PATIENCE_S,
    TRAIN,
    WINDOWS,
    assert_same_end,
    command,
    doomed,
    finish,
    train,
)

TOLD = """
import sys, torch, torch.distributed as dist
from emqdeploy.training.compression import compression_of
from emqdeploy.training.distributed import World
from emqdeploy.training.exchange import Exchange, Rounds
from emqdeploy.training.steps import Step

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
step, answers = Step((), None), {}
for name in ("none", "3", "adaptive"):
    torch.manual_seed(7)
    weight, mean = torch.nn.Parameter(torch.randn(1001)), torch.tensor([1.0 + rank, 5.0])
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    world, share = World(rank, 2), (0.75, 0.25)[rank]
    rounds = Rounds(world, compression_of(name, 0), 3, [weight], [mean], optimizer, 2, share)
    losses, settled = torch.tensor([2.0 + 4 * rank]), []
    torch.manual_seed(rank)
    pushes = [torch.randn(1001) for _ in range(3)]
    for number, push in enumerate(pushes):
        weight.grad = push
        rounds.tell(step, number, losses, rank == 1 and number == 0, True)
        optimizer.step()
        rounds.settle(number, number == 2)
        settled.append(rounds.settled)
        if number == 1:
            answers[name + ".first"] = weight.detach().clone()
    answers |= {name + ".weight": weight.detach(), name + ".mean": mean, name + ".settled": settled,
                name + ".heard": torch.stack([report for _, report in rounds.heard]),
                name + ".bytes": world.sent_bytes, name + ".levels": rounds.compression.levels,
                name + ".pushes": pushes}
    weight.grad = torch.full((1001,), rank + 0.5)
    shared = Exchange(World(rank, 2), compression_of(name, 1), 3, [weight], [])
    shared.tell(step, 9, losses, False, True)
    answers[name + ".gradient"] = weight.grad
torch.save(answers, sys.argv[3])
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.skipif(WINDOWS, reason="gloo")
def test_two_processes_average_their_updates(tmp_path: Path) -> None:
    """By the sizes of their shards, momentum begins anew, and what is compressed is the same in both to the bit."""
    (tmp_path / "told.py").write_text(TOLD)
    calls = [
        [sys.executable, str(tmp_path / "told.py"), str(rank), str(tmp_path / "store"), str(tmp_path / f"{rank}")]
        for rank in (0, 1)
    ]
    running = [subprocess.Popen(call, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) for call in calls]
    assert [process.wait(timeout=PATIENCE_S) for process in running] == [0, 0]
    one, two = (torch.load(tmp_path / str(rank), weights_only=False) for rank in (0, 1))
    torch.manual_seed(7)
    start = torch.randn(1001)
    # Two updates of a round: the second has the momentum of the first; the third is a round of its own.
    moves = [[-(1.9 * told[0] + told[1]), -told[2]] for told in (one["none.pushes"], two["none.pushes"])]
    first = start + 0.75 * moves[0][0] + 0.25 * moves[1][0]
    torch.testing.assert_close(one["none.first"], first)
    torch.testing.assert_close(one["none.weight"], first + 0.75 * moves[0][1] + 0.25 * moves[1][1])
    for name in ("none", "3", "adaptive"):
        assert torch.equal(one[name + ".weight"], two[name + ".weight"]), name
        torch.testing.assert_close(one[name + ".mean"], torch.tensor([1.25, 5.0]))
        assert one[name + ".settled"] == [False, True, True]
        # The mean loss is 0.75 * 2 + 0.25 * 6, and one process was asked to stop in the first step.
        torch.testing.assert_close(one[name + ".heard"], torch.tensor([[3.0, 1.0], [3.0, 0.0], [3.0, 0.0]]))
        torch.testing.assert_close(one[name + ".gradient"], torch.full((1001,), 2.0))
    for name, bits in (("3", 3), ("adaptive", bits_of(2))):
        error = (one[name + ".first"] - first).norm() / (first - start).norm()
        assert 0.1 < error < 20, "rounded, and not to nothing"
        # Per round: reports and the mean of two numbers as they are, then a norm and the codes.
        assert one[name + ".bytes"] == 4 * (2 * 2 + 2) + 4 * (2 + 2) + 2 * (4 + -(-1001 * bits // 8))
    assert one["none.bytes"] == 4 * (2 * 2 + 2) + 4 * (2 + 2) + 2 * 4 * 1001


@pytest.mark.parametrize("option", [["--local-steps", "2"], ["--compress", "adaptive"]])
def test_a_process_alone_has_nobody_to_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    """Refused with the way to start several, before anything is written."""
    with pytest.raises(SystemExit, match="2"):
        main([*TRAIN, *option, "--out", str(tmp_path / "run")])
    assert "is about several processes, and there is one; start them with torchrun" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kill -9")
def test_a_process_that_dies_in_a_round_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    """Unequal and uneven shards, updates in few bits; what was saved between rounds goes on to the same end."""
    options = ["--epochs", "2", "--save-every", "0", "--local-steps", "3", "--compress", "adaptive"]
    options += ["--shards", "2,1", "--skew", "5", "--ema", "0.9"]
    train(2, *options, "--out", str(tmp_path / "whole"))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < lines[0]["sent_bytes"] < lines[1]["sent_bytes"]
    assert lines[1]["levels"] >= 2
    out = tmp_path / "killed"
    again = [*options, "--out", str(out), "--resume", "auto"]
    program = doomed(tmp_path, "update", 8, "1")  # the second update of a round
    killed = subprocess.run(command(2, *again, program=program), capture_output=True, text=True, timeout=PATIENCE_S)
    assert killed.returncode == 1
    said = killed.stdout + killed.stderr
    assert said.count("error: another process of this run ended; what was saved last is intact") == 1
    assert f"-{int(signal.SIGKILL)}" in said
    finish(command(2, *again))
    assert_same_end(tmp_path / "whole", out)


@pytest.mark.slow
@pytest.mark.skipif(WINDOWS, reason="torchrun with gloo")
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--shards", "1,0"], "process 1 of 2 would have no images of its own"),
        (["--shards", "1,2,3"], "--shards has 3 sizes, but 2 processes train"),
        (["--prune-rate", "0.5"], "--local-steps shows every process images of its own"),
    ],
)
def test_what_cannot_be_divided_is_said_once(tmp_path: Path, wrong: list[str], sentence: str) -> None:
    """By one process for all of them, and nothing is written."""
    call = command(2, "--local-steps", "2", *wrong, "--out", str(tmp_path / "run"))
    done = subprocess.run(call, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode != 0
    assert done.stderr.count(f"error: {sentence}") == 1
    assert not (tmp_path / "run").exists()
