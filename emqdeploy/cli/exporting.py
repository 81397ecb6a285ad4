"""Commands that turn a checkpoint into artefacts and prove them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from emqdeploy.cli.app import app
from emqdeploy.cli.common import BitsOption, DataDirOption, DataOption, JsonOption, PathArgument, finish, say
from emqdeploy.cli.lazy import lazily
from emqdeploy.errors import EmqError


def _classes() -> Sequence[type]:
    from emqdeploy.exporters.settings import ExportSettings

    return [ExportSettings]


def _export(path: PathArgument = None, *, json_: JsonOption = False, **given: Any) -> None:
    from emqdeploy.exporters.settings import ExportSettings
    from emqdeploy.options import from_flags
    from emqdeploy.report.export_table import export_parts
    from emqdeploy.workflows.export import export as run

    result = run(ExportSettings(path=path, **from_flags(ExportSettings, given)), say)
    finish(result, json_, *export_parts(result))


@app.command(cls=lazily(_export, _classes))
def export() -> None:
    """Export children into one bundle, with each file proven against the integer reference.

    Targets

      onnx            QDQ graphs of standard operators; int8 kernels in onnxruntime

      tensorrt        an engine, of TensorRT if there is a GPU, else of TensorRT-RTX, which is built without one

      tensorrt-rtx    an engine for RTX GPUs, built ahead of time on any machine

      tensorrt-onnx   the ONNX form that TensorRT takes, and the command that builds an engine from it on the device

      openvino        OpenVINO IR

    Examples:
      emqdeploy export --bits 4 --target onnx

      emqdeploy export runs/digits-resnet8-001 --bits 2,4,8 --out deploy

      emqdeploy export --bits 1,2,3,4,5,6,7,8 --storage master     # eight files, the weights once

      emqdeploy export --bits 2,4,8 --selector if                  # one graph, the child is an input

      emqdeploy export --bits 4 --target tensorrt

      emqdeploy export deploy --target tensorrt                    # on the device: engines that the bundle lacks

      emqdeploy export --bits 2,8 --layout triton --out repository
    """


@app.command()
def materialize(
    bundle: Annotated[Path, typer.Argument(help="The bundle, for example runs/digits-resnet8-001/bundle.")],
    bits: BitsOption = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    json_: JsonOption = False,
) -> None:
    """Turn a bundle whose files share one master into plain ONNX files, without torch, so that it works on a device.

    Files of `--storage master` run as they are, but unpack their weights at every load. Plain files load faster, but
    take a byte for each weight and child.

    Examples:
      emqdeploy materialize runs/digits-resnet8-001/bundle

      emqdeploy materialize deploy --bits 4
    """
    from emqdeploy.report.export_table import export_parts
    from emqdeploy.workflows.export import materialize as run

    result = run(bundle, bits, data_dir, say, data)
    finish(result, json_, *export_parts(result))


@app.command()
def verify(
    path: PathArgument = None,
    bits: BitsOption = None,
    images: Annotated[int | None, typer.Option(min=1, help="Number of test images; all by default.")] = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="Your own pkg.module:function; name it again, because no file may decide what is imported."),
    ] = None,
    pretrained: Annotated[
        Path | None,
        typer.Option(
            help="Float weights that the network was made from; by default those that quantize left beside it."
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Compare every way to run a network with the integer reference, and the reference with the float model.

    The exit code is 1 if a comparison fails.

    A checkpoint runs in onnxruntime with and without its fusions, in the native kernels, in torch, in ONNX's reference
    evaluator (on a few images) and in OpenVINO. In a bundle, every file runs too, including selectors and packed ones,
    each in the runtime that it was made for. If an engine was built but never run and now answers well, the bundle's
    manifest is completed.

    A network from `quantize` is also compared with the float model, if torch and the float weights are there: an 8-bit
    child needs a signal to noise of at least 15 dB, and 95 % of the same decisions.

    Examples:
      emqdeploy verify

      emqdeploy verify runs/digits-resnet8-001 --bits 2 --images 100

      emqdeploy verify runs/digits-resnet8-001/bundle --json
    """
    from emqdeploy.report.verify_table import verify_parts
    from emqdeploy.workflows.verify import verify as run

    result = run(path, bits, images, data_dir, model, pretrained, say, data)
    finish(result, json_, *verify_parts(result))
    if not result["ok"]:
        failed = ", ".join(entry["child"] for entry in result["results"] if not entry["ok"])
        raise EmqError(f"verification failed at child {failed}; do not deploy what differs")
