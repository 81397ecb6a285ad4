"""A network that becomes more precise while it serves: a base is opened, and enhancements raise it."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from emqdeploy.data import Preprocessing
from emqdeploy.errors import EmqError
from emqdeploy.files import read_bytes
from emqdeploy.format.card import Card
from emqdeploy.format.child import Child, ChildLike, in_order
from emqdeploy.format.grid import Floats
from emqdeploy.format.parts import LARGEST_PART, apply, check
from emqdeploy.runtimes.base import Runtime, find_adapter
from emqdeploy.runtimes.proof import naming

if TYPE_CHECKING:
    from typing import Self


class Growing:
    """Serves as a `Runtime` does, and may be upgraded meanwhile; every method may be called from any thread.

    An upgrade builds the new network beside the one in use and then takes its place: a request ends with the numbers
    that it began with. What goes wrong with an upgrade is raised, and what was served stays.

    Args:
        base: the ``.emq`` to begin with, as bytes or as a path.
        runtime: a name in `RUNTIMES`.
        follow: whether an upgrade also switches to the widest child that came with it.
        **options: of the adapter: ``residency``, ``threads`` and its own.

    Attributes:
        follow: as given.
    """

    def __init__(
        self, base: bytes | str | Path, runtime: str = "onnxruntime", follow: bool = True, **options: Any
    ) -> None:
        where = "the base" if isinstance(base, bytes) else str(base)
        self.follow = follow
        self._runtime, self._options = runtime, options
        self._upgrading, self._changing = threading.Lock(), threading.Lock()
        self._closed = False
        self._bytes = base if isinstance(base, bytes) else read_bytes(base, LARGEST_PART, "name the base of a split")
        self._network = self._open(self._bytes, where)

    def upgrade(self, part: str | Path | bytes | BinaryIO, where: str | None = None) -> tuple[Child, ...]:
        """Adds an enhancement; returns the children that are new.

        Args:
            part: its path, its bytes, or a stream of which no more is read than belongs to it.
            where: what it is called in the sentence of an error.

        Raises:
            EmqError: it is cut off or altered, or builds on another file than the one that is there.
        """
        name = where or (str(part) if isinstance(part, (str, Path)) else "the enhancement")
        with self._upgrading:
            if isinstance(part, (str, Path)):
                part = read_bytes(part, LARGEST_PART, "name an enhancement that emqdeploy split wrote")
            made = apply(self._bytes, io.BytesIO(part) if isinstance(part, bytes) else part, name)
            before, network = self._network, self._open(made, name)
            with self._changing:  # only now: whoever switches does not wait for what is being built
                if self._closed:
                    network.close()
                    raise EmqError("this network was closed while it was upgraded; open it again")
                if not self.follow:
                    network.use(before.child)
                # Nothing closes the one before: requests may be in it, and it goes when the last of them has ended.
                self._bytes, self._network = made, network
        return in_order(set(network.children) - set(before.children))

    def _open(self, data: bytes, where: str) -> Runtime:
        checkpoint = check(data, where)
        widest = in_order(checkpoint.network.children)[-1]
        with naming(Path(where)):
            network: Runtime = find_adapter(self._runtime)(checkpoint, children=[widest], **self._options)
        network.card = checkpoint.card
        return network

    # --- as a Runtime ---

    @property
    def network(self) -> Runtime:
        """What serves now; after an upgrade it is another one."""
        return self._network

    @property
    def card(self) -> Card:
        """What the file says about its network."""
        card = self._network.card
        if card is None:
            raise EmqError("this network has no card")
        return card

    @property
    def children(self) -> tuple[Child, ...]:
        """Those that are there by now, by ascending width."""
        return self._network.children

    @property
    def child(self) -> Child:
        """The child in use."""
        return self._network.child

    @property
    def bits(self) -> int:
        """Weight width of the child in use."""
        return self._network.bits

    @property
    def classes(self) -> list[str]:
        """Class names, by index."""
        return self._network.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input."""
        return self._network.preprocessing

    def use(self, child: ChildLike) -> None:
        """Switches to a child that is there."""
        with self._changing:
            self._network.use(child)

    def set_bits(self, bits: int) -> None:
        """The same, for a weight width."""
        self.use(bits)

    def run(self, images: Floats, child: ChildLike | None = None) -> Floats:
        """Returns logits ``(N, classes)`` for normalised images, float32 ``(N, C, H, W)``."""
        return self._network.run(images, child)

    def __call__(self, images: Floats) -> Floats:
        """The same as `run` at the child in use."""
        return self.run(images)

    def close(self) -> None:
        """Releases what the runtime holds."""
        with self._changing:
            self._closed = True
            self._network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()
