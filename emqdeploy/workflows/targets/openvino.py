"""OpenVINO: its IR of the same graph; it rounds in its own way, so its decisions are compared, not its codes."""

from __future__ import annotations

from collections.abc import Iterator

from emqdeploy.errors import UsageError, require
from emqdeploy.exporters.openvino_ir import write_ir
from emqdeploy.exporters.products import Job, Product, tag
from emqdeploy.exporters.settings import PLAIN
from emqdeploy.exporters.storage import STORAGES
from emqdeploy.format.bundle import Artefact, Bundle
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.graph.parity import must_agree
from emqdeploy.runtimes.adapters.openvino_runtime import OpenVinoRuntime
from emqdeploy.runtimes.graph_sources import Graphs
from emqdeploy.workflows.handlers import TARGETS, Target
from emqdeploy.workflows.rungs import Rung, rung_of

DIRECTORY = "openvino"


@TARGETS.register("openvino")
class OpenVino(Target):
    """An ``.xml`` and a ``.bin`` per child; OpenVINO has no 2-bit weights and computes 4-bit ones in float."""

    name = "openvino"
    runtime = "openvino on this CPU"
    note = "compared: decisions in OpenVINO, which rounds in its own way, so its codes are its own"
    remedy = "use --target onnx"

    def products(self, job: Job) -> Iterator[Product]:
        """IR of every child."""
        require("openvino", "openvino")
        settings = job.settings
        for option, value, only in (
            ("storage", settings.storage, "int8"),
            ("selector", settings.selector, None),
            ("layout", settings.layout, PLAIN),
        ):
            if value != only:
                raise UsageError(f"--{option} {value} is not for --target openvino; leave it out or use --target onnx")
        for child in job.children:
            job.report(f"exporting {child} to OpenVINO IR")
            stored = STORAGES["int8"](job.checkpoint, job.emq, child)
            name = tag(child)
            xml = job.staging / f"model-{name}.xml"
            version = write_ir(stored.data, xml)
            place = f"{DIRECTORY}/{xml.name}"
            yield Product(
                f"openvino-{name}",
                (child,),
                self.name,
                "int8",
                xml,
                place,
                stored.stored_as,
                companions={place.replace(".xml", ".bin"): xml.with_suffix(".bin")},
                built_for={"runtime": "openvino", "version": version},
            )

    def why_not(self, artefact: Artefact) -> str | None:
        """OpenVINO has to be installed."""
        return OpenVinoRuntime.why_not()

    def open(self, bundle: Bundle, artefact: Artefact, child: Child, checkpoint: Checkpoint) -> Rung:
        """On the CPU."""
        return rung_of(OpenVinoRuntime(Graphs.of_artefacts(bundle, [artefact]), prove=False), child, must_agree)
