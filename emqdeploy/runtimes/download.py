"""Fetches the parts of a checkpoint from any web server that knows ranges, and serves while they come.

A connection that breaks is taken up where it broke. What a list of parts says is how much comes and what its hash is;
files are asked for beside the list and nowhere else, and a redirection to another host is not followed.
"""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.parts import INDEX, Index, Part, read_index
from emqdeploy.runtimes.growing import Growing

if TYPE_CHECKING:
    from http.client import HTTPMessage
    from typing import IO, Self

_LARGEST_INDEX = 1 << 20
_BLOCK = 1 << 14
_PATIENCE_S = 30.0
Progress = Callable[[Part, int], None]
"""``(part, bytes of it that are there)``."""


def _nothing(part: Part, count: int) -> None:
    """Tells nobody."""


class _SameHost(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Refuses to be sent to another host."""
        if urllib.parse.urlsplit(newurl)[:2] != urllib.parse.urlsplit(req.full_url)[:2]:
            raise EmqError(f"{req.full_url} leads to another host, {newurl[:200]!r}; name that one if you trust it")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass
class Origin:
    """A place that delivers parts.

    Attributes:
        url: of the folder, without a slash at its end.
        progress: told of what comes.
        tries: attempts in a row that bring nothing; then it is given up.
        bytes_read: that came so far, also in vain.
    """

    url: str
    progress: Progress = _nothing
    tries: int = 8
    bytes_read: int = 0
    _opener: urllib.request.OpenerDirector = field(default_factory=lambda: urllib.request.build_opener(_SameHost))

    def __post_init__(self) -> None:
        """Checks what kind of address it is."""
        self.url = self.url.rstrip("/").removesuffix(f"/{INDEX}")
        if urllib.parse.urlsplit(self.url).scheme not in ("http", "https"):
            raise UsageError(f"{self.url!r} is no address of a web server; it begins with http:// or https://")

    def index(self) -> Index:
        """Fetches the list of parts."""
        return read_index(self._fetch(INDEX, _LARGEST_INDEX, lambda count: None, exact=False), f"{self.url}/{INDEX}")

    def part(self, part: Part) -> bytes:
        """Fetches a part whole, and compares it with its hash.

        Raises:
            EmqError: the server gives up, sends more or less than the list says, or something else.
        """
        data = self._fetch(part.file, part.size, lambda count: self.progress(part, count))
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise EmqError(f"{self.url}/{part.file} does not match its hash in {INDEX}; split or upload it again")
        return data

    def _fetch(self, name: str, size: int, tell: Callable[[int], None], exact: bool = True) -> bytes:
        """Bytes of a file, ``size`` of them, or at most; goes on where a connection broke."""
        held, vain, last = bytearray(), 0, "it sent nothing"
        while vain < self.tries:
            before = len(held)
            try:
                if self._read(name, size, held, tell, exact) or (exact and len(held) == size):
                    break
                last = f"it sent {len(held):,} of {size:,} bytes"
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise EmqError(f"{self.url}/{name} cannot be fetched: {error.code} {error.reason}") from error
                last = f"{error.code} {error.reason}"
            except (OSError, http.client.HTTPException) as error:
                last = str(getattr(error, "reason", None) or error) or type(error).__name__
            vain = 0 if len(held) > before else vain + 1
            time.sleep(0.05 * (1 << vain) if vain else 0)
        else:
            raise EmqError(f"{self.url}/{name} cannot be fetched: {last}; see that the server runs, and try again")
        return bytes(held)

    def _read(self, name: str, size: int, held: bytearray, tell: Callable[[int], None], exact: bool) -> bool:
        """Reads what a connection gives; returns whether it ended where the server said that the file ends."""
        request = urllib.request.Request(f"{self.url}/{name}", headers={"Range": f"bytes={len(held)}-"} if held else {})
        with self._opener.open(request, timeout=_PATIENCE_S) as answer:
            if held and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                held.clear()  # a server without ranges begins anew
            promised = answer.headers.get("Content-Length", "")
            ends = len(held) + int(promised) if promised.isdecimal() else None
            while block := answer.read(_BLOCK):
                self.bytes_read += len(block)
                if len(held) + len(block) > size:
                    raise EmqError(f"{self.url}/{name} sends more than {size:,} bytes, which is what it should have")
                held += block
                tell(len(held))
            return not exact if ends is None else len(held) == ends


class Download:
    """A network that grows in the background as its parts come.

    Args:
        url: of the folder that ``emqdeploy split`` wrote, on any web server.
        runtime: a name in `RUNTIMES`.
        progress: told of what comes.
        background: whether a thread fetches the enhancements at once; else `step` fetches one.
        tries: attempts in a row that bring nothing; then it is given up.
        **options: of the adapter.

    Attributes:
        network: what serves; it is there once the base is.
        index: the parts.
        arrived: how many of them are in use.
        error: what ended the download early; what was served stays.
    """

    def __init__(
        self,
        url: str,
        runtime: str = "onnxruntime",
        progress: Progress = _nothing,
        background: bool = True,
        tries: int = 8,
        **options: Any,
    ) -> None:
        self._origin = Origin(url, progress, tries)
        self.index = self._origin.index()
        self.network = Growing(self._origin.part(self.index.parts[0]), runtime, **options)
        self.arrived = 1
        self.error: EmqError | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fetch_all, name="parts", daemon=True)
        if background:
            self._thread.start()

    @property
    def bytes_read(self) -> int:
        """Bytes that came over the line so far."""
        return self._origin.bytes_read

    @property
    def complete(self) -> bool:
        """Whether every part is in use."""
        return self.arrived == len(self.index.parts)

    def step(self) -> bool:
        """Fetches the next part and upgrades; returns whether another one is left."""
        if not self.complete:
            part = self.index.parts[self.arrived]
            self.network.upgrade(self._origin.part(part), f"{self._origin.url}/{part.file}")
            self.arrived += 1
        return not self.complete

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until all parts came or the download ended; returns whether they came.

        Raises:
            EmqError: what ended it early.
        """
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self.error is not None:
            raise self.error
        return self.complete

    def _fetch_all(self) -> None:
        try:
            while not self._stopped.is_set() and self.step():
                pass
        except EmqError as error:
            self.error = error

    def close(self) -> None:
        """Ends the download after the part that is coming, and releases the network."""
        self._stopped.set()
        self.network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()
