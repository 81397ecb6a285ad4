"""Bits sent to reach a loss: updates of few bits, more of them as the loss falls, against fixed widths and 32 bits.

Real `torchrun` processes train ResNet-8 on the embedded digits over the loopback, with gradients that are sent with
every step, or with federated averaging; bits are those of the messages that a process really gave to its peers,
statistics and losses included. For the traffic of hundreds of clients a small network is trained by 200 simulated ones
in one process, whose messages are encoded and decoded by the same functions.

Rows are kept when they are done: run the same command again to go on.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.common import arguments, machine
from emqdeploy.data import load_dataset
from emqdeploy.files import atomic_write_text
from emqdeploy.training.api import train
from emqdeploy.training.compression import compression_of, decode, encode
from emqdeploy.training.distributed import World, join_world, leave_world
from emqdeploy.training.recipes import resolve
from emqdeploy.training.sharding import shards

PROCESSES = (2, 8)
STEPS = {"every step": 0, "every 5 steps": 5}
MESSAGES = (("none", 0), ("4", 0), ("8", 0), ("adaptive", 0), ("4", 512), ("adaptive", 512))
"""What is sent, and how many numbers share a norm; 0, all of them, is the paper's way."""

FEWER = (("none", 0), ("adaptive", 512))
"""The same of more processes, whose rows take longest."""

TARGETS = {"every step": 0.5, "every 5 steps": 0.5, "simulated": 0.5}
"""Mean training loss of an epoch, or of a round, that has to be reached."""

COMMON: dict[str, Any] = {
    **{"bits": "4", "float_first": 0.0, "label_smoothing": 0.0, "optimizer": "sgd", "batch_size": 32, "limit": 700},
    **{"epochs": 10, "threads": 1, "validate_every": 100},
}

CLIENTS, ROUNDS, LOCAL_STEPS, RATE, HIDDEN = 200, 60, 5, 0.3, 32


def trained(world: World, message: str, bucket: int, steps: int, epochs: int) -> dict[str, Any]:
    """Trains once with the processes that are there; returns loss, bits and levels of every epoch, and accuracy."""
    values = {**COMMON, "epochs": epochs, "compress": message, "local_steps": steps}
    values |= {"compress_bucket": bucket} if bucket else {}
    values |= {"skew": 5.0} if steps else {}
    fresh = World(world.rank, world.size)  # counts from zero
    folder = Path(fresh.agree(tempfile.mkdtemp() if world.leads else ""))
    result = train(resolve(None, None, values), folder / "run", console=Console(file=io.StringIO()), world=fresh)
    if not world.leads:
        return {}
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "loss": [line["loss"]["4"] for line in lines],
        "bits": [8 * line["sent_bytes"] for line in lines],
        "levels": [line["levels"] for line in lines],
        "accuracy": next(iter(result.accuracy.values())),
    }


def simulated(message: str, bucket: int, rounds: int) -> dict[str, Any]:
    """Federated averaging of a network of two layers over clients with few images and few classes each."""
    digits = load_dataset("digits").train
    images = torch.from_numpy(digits.images[:]).flatten(1).float() / 255
    labels = torch.from_numpy(digits.labels)
    mine = _clients(digits.labels)
    draw = torch.Generator().manual_seed(0)
    sizes = (images.shape[1], HIDDEN, 10)
    shapes = [(sizes[0], sizes[1]), (1, sizes[1]), (sizes[1], sizes[2]), (1, sizes[2])]
    weights = torch.cat([torch.randn(rows * columns, generator=draw) / sizes[0] ** 0.5 for rows, columns in shapes])
    shares = torch.tensor([len(part) for part in mine]) / len(labels)
    compression = compression_of(message, bucket)
    found: dict[str, Any] = {"loss": [], "bits": [], "levels": []}
    bits = 0
    for _ in range(rounds):
        local = weights.expand(len(mine), -1).clone().requires_grad_()
        losses = torch.zeros(len(mine))
        for _ in range(LOCAL_STEPS):
            picks = torch.stack([part[torch.randint(len(part), (4,), generator=draw)] for part in mine])
            each = _losses(local, shapes, images[picks], labels[picks])
            (gradient,) = torch.autograd.grad(each.sum(), local)
            local = (local - RATE * gradient).detach().requires_grad_()
            losses += each.detach() / LOCAL_STEPS
        total = torch.zeros_like(weights)
        levels = compression.levels
        for move, share in zip(local.detach() - weights, shares, strict=True):
            if levels:
                sent = encode(move, levels, draw, bucket)
                total += share * decode(sent, len(move), levels, bucket)
            else:
                sent = move
                total += share * move
            bits += 8 * sent.nbytes
        weights = weights + total
        loss = (losses * shares).sum()
        compression.hear(loss, LOCAL_STEPS * len(mine))
        found["loss"].append(round(float(loss), 5))
        found["bits"].append(bits // len(mine))
        found["levels"].append(levels)
    return found


def _clients(labels: Any) -> list[Tensor]:
    """The images of each client; 20 groups of uneven classes, divided among ten clients each."""
    groups = shards(labels, (1.0,) * (CLIENTS // 10), 1.0, 0)
    return [torch.from_numpy(group[start::10]) for group in groups for start in range(10) if len(group[start::10])]


def _losses(local: Tensor, shapes: Sequence[tuple[int, int]], images: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of every client ``(clients,)`` on its images ``(clients, B, pixels)`` with weights of its own."""
    parts = local.split([rows * columns for rows, columns in shapes], dim=1)
    first, shift, second, last = (part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True))
    logits = torch.baddbmm(last, torch.baddbmm(shift, images, first).relu(), second)
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(len(local), -1).mean(1)


def missing(rows: Sequence[dict[str, Any]], processes: int) -> list[tuple[str, str, int]]:
    """What was not measured yet with a number of processes: mode, message, bucket."""
    done = {(row["processes"], row["mode"], row["compress"], row["bucket"]) for row in rows}
    modes = STEPS if processes != CLIENTS else {"simulated": 0}
    messages = FEWER if processes in PROCESSES[1:] else MESSAGES
    return [(mode, *message) for mode in modes for message in messages if (processes, mode, *message) not in done]


def work(path: Path, processes: int, quick: bool) -> None:
    """Measures what is missing with the processes that were started, or in this one."""
    world = join_world("cpu") if processes != CLIENTS else World()
    held = json.loads(path.read_text()) if path.exists() else {"rows": []}
    for mode, message, bucket in world.agree(missing(held["rows"], processes)):
        if processes == CLIENTS:
            row = simulated(message, bucket, 3 if quick else ROUNDS)
        else:
            # Of a shard an epoch has fewer steps; all rows have as many.
            epochs = COMMON["epochs"] * (processes if STEPS[mode] else 1)
            row = trained(world, message, bucket, STEPS[mode], 2 if quick else epochs)
        if world.leads:
            about = {"processes": processes, "mode": mode, "compress": message, "bucket": bucket}
            held["rows"].append({**about, **row})
            held["machine"] = machine()
            atomic_write_text(path, json.dumps(held, indent=1) + "\n")
            print(about, row["loss"][-1], row["bits"][-1], flush=True)
    leave_world()


def bits_to_reach(row: dict[str, Any], target: float) -> int | None:
    """Bits that a process, or a client, had sent at the end of the first epoch of at most that loss."""
    return next((bits for loss, bits in zip(row["loss"], row["bits"], strict=True) if loss <= target), None)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: bits until the loss is reached, and what became of the network."""
    lines = [
        "| who | sends | numbers per norm | bits of a number, first and last | Mbit until the loss | of 32-bit |"
        " last loss | accuracy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        same = [one for one in rows if (one["processes"], one["mode"]) == (row["processes"], row["mode"])]
        whole = next((one for one in same if one["compress"] == "none"), row)
        sent, base = (bits_to_reach(one, TARGETS[row["mode"]]) for one in (row, whole))
        widths = [1 + levels.bit_length() if levels else 32 for levels in (row["levels"][0], row["levels"][-1])]
        who = "clients, simulated" if row["mode"] == "simulated" else f"processes, {row['mode']}"
        cells = [f"{row['processes']} {who}", f"`{row['compress']}`", row["bucket"] or "all"]
        cells += [f"{widths[0]}, {widths[1]}"]
        cells += ["not reached" if sent is None else f"{sent / 1e6:.2f}"]
        cells += ["" if sent is None or base is None else f"{sent / base:.2f}"]
        cells += [f"{row['loss'][-1]:.3f}", f"{row['accuracy']:.1f} %" if "accuracy" in row else ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the rows that are missing and prints the table."""
    parser = arguments(__doc__, "federated")
    parser.add_argument("--processes", type=int, help="measure with so many, which torchrun has started")
    options = parser.parse_args(argv)
    if options.processes:
        work(options.json, options.processes, options.quick)
        return
    for processes in (CLIENTS, *PROCESSES):
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *(start if processes != CLIENTS else []), "-m", "benchmarks.federated"]
        command += ["--processes", str(processes), "--json", str(options.json), *(["--quick"] if options.quick else [])]
        if missing(json.loads(options.json.read_text())["rows"] if options.json.exists() else [], processes):
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    print(table(json.loads(options.json.read_text())["rows"]))


if __name__ == "__main__":
    main()
