"""A runtime whose kernels are not to be taken on trust is compared with the integer reference before it serves.

Once per network, runtime and processor: what was right is remembered in the user's cache. An entry there is data, and
all that a wrong one can do is to leave the comparison out; where nothing can be kept, it is made each time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from emqdeploy import __version__
from emqdeploy.data import Preprocessing
from emqdeploy.errors import EmqError
from emqdeploy.format.card import Card
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.graph.parity import Parity, explain_noise, must_agree
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.runtimes.machine import environment, package_version

IMAGES = 8
"""Images that are compared; fewer where they are large, for the reference computes in plain numpy."""

_PIXELS = IMAGES * 64 * 64
_BLOCK = 4
"""Pixels along a patch of one colour: noise alone is the same to every network."""


class Disproven(EmqError):
    """A runtime answers otherwise than the network was trained."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file that a person named in front of the sentence."""
    try:
        yield
    except Disproven as error:
        raise Disproven(f"{path}: {error}") from error


class Proof:
    """Compares a runtime's children with the reference, each before it is used.

    Args:
        runtime: its name.
        library: the package that computes, whose version counts.
        device: what it computes on.
        checkpoint: loads what the reference runs; None where the network came without one.

    Attributes:
        missing: why nothing could be compared, in one sentence; None where all was.
    """

    def __init__(self, runtime: str, library: str, device: str, checkpoint: Callable[[], Checkpoint] | None) -> None:
        self._runtime, self._library, self._device, self._checkpoint = runtime, library, device, checkpoint
        self.missing: str | None = None

    def __call__(self, child: Child, opened: Iterable[bytes | memoryview], run: Callable[[Floats], Floats]) -> None:
        """Compares a child that was just opened.

        Args:
            child: which one.
            opened: all that the runtime was given for it.
            run: answers images.

        Raises:
            Disproven: it is another network there.
        """
        version = package_version(self._library)
        known = _Entry(opened, [self._runtime, str(version), self._device, _processor(), __version__, child.name])
        if known.exists():
            return
        if self._checkpoint is None:
            self.missing = f"not proven in {self._runtime} here: the files came without their checkpoint"
        elif importlib.util.find_spec("onnx") is None:
            self.missing = f"not proven in {self._runtime} here: that takes the onnx package"
        else:
            wrong = _compared(self._checkpoint(), child, run)
            if wrong is not None:
                raise Disproven(
                    f"{self._runtime} {version} does not answer child {child.name} as it was trained ({wrong}); use"
                    " another runtime, and please report this"
                )
            known.remember()


def sample_images(card: Card) -> Floats:
    """Normalised images of coloured patches and noise, the same each time, ``(N, C, H, W)``."""
    channels, height, width = card.input_shape
    count = max(2, min(IMAGES, _PIXELS // (height * width)))
    generator = np.random.default_rng(0)
    size = (count, channels, -(-height // _BLOCK), -(-width // _BLOCK))
    patches = generator.integers(0, 256, size).repeat(_BLOCK, 2).repeat(_BLOCK, 3)[:, :, :height, :width]
    noise = generator.integers(-32, 33, patches.shape)
    return Preprocessing.of(card.preprocessing).normalize((patches + noise).clip(0, 255).astype(np.uint8))


def _compared(checkpoint: Checkpoint, child: Child, run: Callable[[Floats], Floats]) -> str | None:
    images = sample_images(checkpoint.card)
    reference = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child))
    parity = Parity(float_logits=reference.float_logits)
    expected = reference.run(images)[0]
    parity.add((expected, {}), (run(images), {}))
    explain_noise(parity, reference, images, expected)
    return must_agree(parity, None)


class _Entry:
    """What is remembered of one comparison: that a file of this name exists."""

    def __init__(self, opened: Iterable[bytes | memoryview], about: list[str]) -> None:
        digest = hashlib.sha256("\0".join(about).encode())
        for part in opened:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        self._name = digest.hexdigest()

    @property
    def _path(self) -> Path:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(root) / "emqdeploy" / "proven" / self._name

    def exists(self) -> bool:
        try:
            return self._path.is_file()
        except (OSError, RuntimeError):  # no home, or one that is closed
            return False

    def remember(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()


@functools.cache
def _processor() -> str:
    here = environment()
    return " ".join([here["machine"], here["cpu"], *here["cpu_flags"]])
