"""Commands that deliver a network in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import JsonOption, finish, say


@app.command()
def split(
    path: Annotated[Path | None, typer.Argument(help="A run or .emq file; the latest run by default.")] = None,
    at: Annotated[str, typer.Option(help="Weight widths after which a part ends, such as 2,4.")] = "1,2,4",
    out: Annotated[
        Path | None, typer.Option(help="New folder for the parts; by default 'parts' beside the checkpoint.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Split a checkpoint into a base that runs by itself and enhancements that add bit-planes.

    The base is an .emq file of the narrow children. A device that has it can answer at once, and becomes more precise
    with every part that arrives. After the last part it has exactly the file that was split.

    Examples:
      emqdeploy split

      emqdeploy split runs/digits-resnet8-001 --at 2,4 --out parts
    """
    from emqdeploy.report.delivery import split_parts
    from emqdeploy.workflows.delivery import split as run

    result = run(path, at, out)
    finish(result, json_, *split_parts(result))


@app.command()
def join(
    folder: Annotated[Path, typer.Argument(help="The folder that split wrote.")],
    out: Annotated[Path, typer.Option(help="The .emq file to write.")],
    bits: Annotated[
        int | None, typer.Option(help="Join only the parts that this weight width needs.", min=1, max=8)
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Put the parts of a checkpoint together again; all of them give exactly the file that was split.

    Examples:
      emqdeploy join parts --out whole.emq

      emqdeploy join parts --bits 4 --out four.emq
    """
    from emqdeploy.workflows.delivery import join as run

    result = run(folder, out, bits)
    finish(result, json_, f"wrote {result['checkpoint']}: children {', '.join(result['children'])}")


@app.command("serve-planes")
def serve_planes(
    folder: Annotated[Path, typer.Argument(help="The folder that split wrote.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 means all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8763,
    rate: Annotated[
        float | None,
        typer.Option(help="At most this many kilobytes per second and client, to try a slow connection.", min=0.001),
    ] = None,
) -> None:
    """Serve the parts of a checkpoint over HTTP; any other web server that supports range requests works as well.

    A client runs emqdeploy.runtimes.Runtime.from_url("http://HOST:8763").network.run(images). Ctrl-C ends the server.

    Example:
      emqdeploy serve-planes runs/digits-resnet8-001/parts
    """
    from emqdeploy.serving.planes import PlaneServer

    with PlaneServer(folder, host, port, None if rate is None else 1000 * rate) as server:
        say(f"serving {len(server.index.parts)} parts at {server.url}")
        server.serve_forever()
