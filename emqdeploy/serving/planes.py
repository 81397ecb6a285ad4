"""A small web server for the parts of a checkpoint: the files of one list, with ranges, and nothing else."""

from __future__ import annotations

import re
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from emqdeploy.errors import EmqError
from emqdeploy.files import LARGEST_TEXT, read_bytes
from emqdeploy.format.parts import INDEX, LARGEST_PART, read_index

_BLOCK = 1 << 14
_REMEDY = "name a folder that emqdeploy split wrote"


class PlaneServer(ThreadingHTTPServer):
    """Serves a folder of parts; `serve_forever` and `shutdown` are those of every server.

    Args:
        folder: that `emqdeploy.format.parts.split` wrote.
        host: address to listen at.
        port: 0 takes a free one.
        rate: bytes a second of each connection at most, to see what a slow line does; None is no limit.

    Raises:
        EmqError: the folder holds no list of parts, a part is missing, or the port is taken.
    """

    daemon_threads = True

    def __init__(self, folder: Path, host: str = "127.0.0.1", port: int = 0, rate: float | None = None) -> None:
        listed = read_bytes(folder / INDEX, LARGEST_TEXT, _REMEDY)
        self.index = read_index(listed, str(folder / INDEX))
        self.files = {INDEX: listed}
        for part in self.index.parts:
            self.files[part.file] = read_bytes(folder / part.file, LARGEST_PART, _REMEDY, inside=folder)
        self.rate = rate
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise EmqError(f"cannot listen at {host}:{port}: {error.strerror}; name another with --port") from error

    @property
    def url(self) -> str:
        """What clients are given."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"


class _Handler(BaseHTTPRequestHandler):
    server: PlaneServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Sends a file, or the end of it that was asked for."""
        data = self.server.files.get(self.path.lstrip("/"))
        if data is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        asked = re.fullmatch(r"bytes=(\d{1,12})-(\d{0,12})", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))) if asked else (0, len(data))
        if start >= max(end, 1):
            self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        began = time.monotonic()
        for place in range(start, end, _BLOCK):
            block = data[place : min(place + _BLOCK, end)]
            self.wfile.write(block)
            if self.server.rate is not None:
                sent = place + len(block) - start
                time.sleep(max(0.0, began + sent / self.server.rate - time.monotonic()))

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: whoever serves knows what is there."""
