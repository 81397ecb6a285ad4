"""A network that grows while it serves, from parts that come over a line that breaks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.emq import load_checkpoint, save_checkpoint
from emqdeploy.format.parts import INDEX, split
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.runtimes import Runtime
from emqdeploy.runtimes.download import Download
from emqdeploy.runtimes.growing import Growing
from emqdeploy.serving.planes import PlaneServer

from ..conftest import Deployed

NAMES = ("net-w2.emq", "net-w4.emqx", "net-w8.emqx")


@pytest.fixture(scope="module")
def folder(small: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 1 to 8 bits in three parts."""
    path = tmp_path_factory.mktemp("download") / "net.emq"
    save_checkpoint(path, small.checkpoint)
    split(path, [2, 4], path.parent / "parts")
    return path.parent / "parts"


@pytest.fixture
def server(folder: Path) -> Iterator[PlaneServer]:
    """What `emqdeploy serve-planes` runs."""
    with PlaneServer(folder) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_every_level_answers_as_the_whole_file_does(folder: Path, small: Deployed) -> None:
    """And requests in flight while it grows have the answer of one child, never of a mixture."""
    images = small.images[:2]
    network, checkpoint = Growing(folder / NAMES[0], threads=1), load_checkpoint(folder.parent / "net.emq")
    exact = {
        child: IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child)).run(images)[0]
        for child in checkpoint.network.children
    }
    answers: list[bool] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = network.run(images)
            answers.append(any(np.array_equal(answer, wanted) for wanted in exact.values()))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert [child.name for child in network.upgrade(folder / NAMES[1])] == ["3", "4"]
    assert network.bits == 4
    with (folder / NAMES[2]).open("rb") as stream:
        assert len(network.upgrade(stream)) == 4
    stop.set()
    for thread in threads:
        thread.join()
    assert answers
    assert all(answers)
    assert network.children == checkpoint.network.children
    for child, wanted in exact.items():
        assert np.array_equal(network.run(images, child), wanted)


def test_a_part_that_does_not_fit_changes_nothing(folder: Path, small: Deployed) -> None:
    """The wrong order and half a file: one sentence, and what was served goes on."""
    with Growing(folder / NAMES[0], threads=1, follow=False) as network:
        before = network.run(small.images[:1])
        with pytest.raises(EmqError, match="builds on another file than the one that is there"):
            network.upgrade(folder / NAMES[2])
        with pytest.raises(EmqError, match="the enhancement is cut off"):
            network.upgrade((folder / NAMES[1]).read_bytes()[:5000])
        assert np.array_equal(network.run(small.images[:1]), before)
        network.upgrade(folder / NAMES[1])
        assert network.bits == 2  # it was told not to follow
        network.set_bits(4)


def test_from_a_server(server: PlaneServer, folder: Path) -> None:
    """The base serves at once; the rest comes in the background, no byte twice."""
    with Runtime.from_url(server.url, threads=1) as download:
        assert download.wait(60)
        assert download.network.bits == 8
        assert download.bytes_read == sum((folder / name).stat().st_size for name in (INDEX, *NAMES))


class Unreliable(BaseHTTPRequestHandler):
    """Breaks every connection after a few thousand bytes; with ranges or without."""

    files: dict[str, bytes]
    ranges = True
    most = 9_000

    def do_GET(self) -> None:
        """Sends the beginning of what was asked for."""
        data = self.files[self.path[1:]]
        asked = self.headers.get("Range") if self.ranges else None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + self.most])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def broken(folder: Path) -> Iterator[tuple[str, type[Unreliable]]]:
    """A real server of that kind, and its handler."""
    handler = type("Handler", (Unreliable,), {"files": {path.name: path.read_bytes() for path in folder.iterdir()}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", handler
        running.shutdown()
        thread.join()


def test_a_line_that_breaks_is_taken_up_where_it_broke(broken: tuple[str, type[Unreliable]], folder: Path) -> None:
    """Every connection ends after 9 kB, and no byte comes twice."""
    with Download(broken[0], threads=1) as download:
        assert download.wait(60)
        assert download.network.bits == 8
        assert download.bytes_read == sum((folder / name).stat().st_size for name in (INDEX, *NAMES))


def test_without_ranges_it_is_given_up(broken: tuple[str, type[Unreliable]]) -> None:
    """Beginning anew brings no more each time; the sentence says how far it came."""
    broken[1].ranges = False
    with pytest.raises(EmqError, match=r"net-w2.emq cannot be fetched: it sent 9,000 of [\d,]+ bytes; see that"):
        Download(broken[0], threads=1, tries=3)


def test_a_server_that_lies_is_found_out(broken: tuple[str, type[Unreliable]]) -> None:
    """More than the list says, another content, and a file that is not there."""
    url, handler = broken
    handler.most = 1 << 20
    base, whole = NAMES[0], dict(handler.files)
    handler.files = whole | {base: whole[base] + b"more"}
    with pytest.raises(EmqError, match=r"net-w2.emq sends more than [\d,]+ bytes, which is what it should have"):
        Download(url, threads=1)
    handler.files = whole | {base: whole[base][:-1] + b"x"}
    with pytest.raises(EmqError, match=r"net-w2.emq does not match its hash in parts.json"):
        Download(url, threads=1)
    handler.files = whole | {NAMES[1]: whole[NAMES[1]][:100]}
    with Download(url, threads=1, tries=2) as download, pytest.raises(EmqError, match=r"net-w4.emqx"):
        download.wait(60)
    handler.files = whole | {INDEX: b"{}"}
    with pytest.raises(EmqError, match=r"parts.json is no list of parts"):
        Download(url, threads=1)


def test_only_web_addresses_are_opened(server: PlaneServer) -> None:
    """No file of this machine, and nothing where nobody listens."""
    with pytest.raises(UsageError, match=r"'file:///etc' is no address of a web server"):
        Download("file:///etc")
    with pytest.raises(EmqError, match=r"nothing/parts.json cannot be fetched: 404"):
        Download(f"{server.url}/nothing")


def test_the_server_gives_what_the_list_names_and_nothing_else(server: PlaneServer, folder: Path) -> None:
    """A folder without a list is refused before it listens."""
    (folder / "secret.txt").write_text("mine")
    with pytest.raises(EmqError, match=r"secret.txt/parts.json cannot be fetched: 404"):
        Download(f"{server.url}/secret.txt")
    (folder / "secret.txt").unlink()
    with pytest.raises(EmqError, match="name a folder that emqdeploy split wrote"):
        PlaneServer(folder.parent)
