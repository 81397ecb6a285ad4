"""Switching under load: eight threads share a runtime and switch it, and no answer ever mixes two children.

One image goes in at a time, and every output is compared with what that child answers alone. After a switch of its own
a thread takes the answer of whichever child is in use by then, for the others switch too; asked for by name, a child
answers itself. Where children are built anew, one request in 64 switches, prefetches or evicts, else every second.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint, load_checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.runtimes.base import Runtime, open_runtime
from emqdeploy.runtimes.residency import RULES, KeepWithin

GOALS = {"switch-onnxruntime": 6_400_000, "switch-native": 3_500_000, "switch-openvino": 80_000, "switch-torch": 20_000}
THREADS = 8
POLICIES = ("all", "lru:1", "lru:2", "memory")
_TINY = Path(__file__).parent.parent / "tests" / "data" / "format3.emq"
_IMAGES = 4
_ROUNDING = 1e-5
_APART = 1e-4
"""Between answers of two children, so that one is never taken for the other."""


class _Kilobytes(KeepWithin):
    """The rule for memory, for networks of a few kilobytes: two children of three fit."""

    def __init__(self, argument: str) -> None:
        self.budget_bytes = int(argument)


def sit(kind: str, first: int, count: int, found: Path) -> Counter[str]:
    """Runs ``count`` inferences, a quarter under each residency policy.

    Args:
        kind: a name in `GOALS`.
        first: number of the first one, which seeds the dice.
        count: how many.
        found: folder for what was said about a fault.

    Returns:
        how many answers were ``right`` or ``mixed``, how many ``switches``, and ``foreign`` and ``crashed``.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            counts, said = pool.submit(_sit, kind.partition("-")[2], first, count).result()
        except BrokenProcessPool as error:
            counts, said = Counter(crashed=1), [str(error)]
    if said:
        found.mkdir(parents=True, exist_ok=True)
        (found / f"{kind}-{first}.txt").write_text("\n".join(said) + "\n")
    return counts


def _sit(name: str, first: int, count: int) -> tuple[Counter[str], list[str]]:
    sys.setswitchinterval(1e-4)  # threads take turns fifty times as often as usual
    counts: Counter[str] = Counter()
    said: list[str] = []
    checkpoint = _trained() if name == "torch" else load_checkpoint(_TINY)
    shape = (1, *checkpoint.card.input_shape)
    images = [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in range(_IMAGES)]
    answers = _answers(checkpoint, name, images)
    for place, policy in enumerate(POLICIES):
        share = count // len(POLICIES) + (place < count % len(POLICIES))
        with _opened(checkpoint, name, policy) as runtime:
            work = partial(_ask, runtime, images, answers, counts, said, 2 if policy == "all" else 64)
            shares = [share // THREADS + (number < share % THREADS) for number in range(THREADS)]
            dice = [random.Random(f"{name} {first} {policy} {number}") for number in range(THREADS)]
            threads = [threading.Thread(target=work, args=one) for one in zip(shares, dice, strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    return counts, said


def _trained() -> Checkpoint:
    """The reference in torch builds its structure anew, which kept files do not describe."""
    from rich.console import Console

    from emqdeploy.training.api import train
    from emqdeploy.training.config import TrainConfig

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(epochs=1, limit=100, bits="2a2,4a4,8a8", threads=1)
        return load_checkpoint(train(config, Path(folder) / "run", console=Console(quiet=True)).checkpoints[0])


def _answers(checkpoint: Checkpoint, name: str, images: list[Floats]) -> list[dict[Child, Floats]]:
    """What every child answers to every image when nobody else asks."""
    with open_runtime(checkpoint, name, threads=1) as runtime:
        answers = [{child: runtime.run(image, child) for child in runtime.children} for image in images]
    for one in answers:
        if any(_distance(a, b) <= _APART for a, b in itertools.combinations(one.values(), 2)):
            raise ValueError("two children answer alike, so that nothing would be seen of a mixture")
    return answers


def _opened(checkpoint: Checkpoint, name: str, policy: str) -> Runtime:
    if policy != "memory":
        return open_runtime(checkpoint, name, threads=1, residency=policy)
    with open_runtime(checkpoint, name, threads=1, children=checkpoint.network.children[:1]) as runtime:
        size = runtime._in_use().engine.size_bytes
    if "kilobytes" not in RULES:
        RULES.register("kilobytes")(_Kilobytes)
    return open_runtime(checkpoint, name, threads=1, residency=f"kilobytes:{5 * size // 2}")


def _ask(
    runtime: Runtime,
    images: list[Floats],
    answers: list[dict[Child, Floats]],
    counts: Counter[str],
    said: list[str],
    every: int,
    share: int,
    dice: random.Random,
) -> None:
    """One thread's requests; what it counted is added at the end."""
    right = mixed = switches = 0
    children, last = runtime.children, time.monotonic()
    try:
        for _ in range(share):
            place, child = dice.randrange(len(images)), children[dice.randrange(len(children))]
            if dice.randrange(every) == 0:
                switches += 1
                if every > 2 and dice.random() < 0.3:
                    (runtime.prefetch if dice.random() < 0.5 else runtime.evict)(child)
                else:
                    runtime.use(child)
                expected = answers[place].values()
                output = runtime.run(images[place])
            elif every > 2 and dice.random() < 0.9:
                expected, output = answers[place].values(), runtime.run(images[place])
            else:
                expected, output = (answers[place][child],), runtime.run(images[place], child)
            if any(_distance(output, one) <= _ROUNDING for one in expected):
                right += 1
            else:
                mixed += 1
                said.append(f"asked for {child} of image {place}: {output.tolist()}")
    except Exception as error:
        counts["foreign"] += 1
        said.append(f"{type(error).__name__}: {error}, {time.monotonic() - last:.1f} s after the start")
    with _COUNTING:
        counts.update(right=right, mixed=mixed, switches=switches)


_COUNTING = threading.Lock()


def _distance(one: Any, other: Any) -> float:
    return 0.0 if one.tobytes() == other.tobytes() else float(np.abs(one - other).max())
