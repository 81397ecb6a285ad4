"""The OpenVINO target: IR made from the same uint8 graph that onnxruntime runs."""

from __future__ import annotations

from collections.abc import Iterator

from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.export.settings import PLAIN
from emqdeploy.export.storage import STORAGES
from emqdeploy.export.targets import TARGETS, Job, Product
from emqdeploy.rounding import keep_rounding

DIRECTORY = "openvino"


@TARGETS.register("openvino")
def openvino_products(job: Job) -> Iterator[Product]:
    """An ``.xml`` and a ``.bin`` per bit-width; OpenVINO has no 2-bit weights and computes 4-bit ones in float."""
    openvino, onnx = require("openvino", "openvino"), require("onnx", "openvino")
    settings = job.settings
    for option, value, only in (
        ("storage", settings.storage, "int8"),
        ("selector", settings.selector, None),
        ("layout", settings.layout, PLAIN),
    ):
        if value != only:
            raise UsageError(f"--{option} {value} is not for --target openvino; leave it out or use --target onnx")
    core = openvino.Core()
    for width in job.widths:
        job.report(f"exporting {width} bits to OpenVINO IR")
        stored = STORAGES["int8"](job.checkpoint, job.emq, width)
        model = onnx.load_from_string(stored.data)
        keep_rounding(model)
        source = job.stage(f"openvino-w{width}.onnx", model.SerializeToString())
        xml = job.staging / f"model-w{width}.xml"
        try:
            openvino.save_model(core.read_model(source), xml, compress_to_fp16=False)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise EmqError(f"OpenVINO does not take the graph: {reason}; use --target onnx") from error
        place = f"{DIRECTORY}/{xml.name}"
        yield Product(
            f"openvino-w{width}",
            (width,),
            "openvino",
            "int8",
            xml,
            place,
            stored.stored_as,
            companions={place.replace(".xml", ".bin"): xml.with_suffix(".bin")},
            built_for={"runtime": "openvino", "version": str(openvino.__version__)},
            stand_in=source,
        )
