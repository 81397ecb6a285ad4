"""Files with our own kernels: one ONNX graph for all children, see `emqdeploy.graph.native_graph`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emqdeploy.exporters.onnx_writer import sealed
from emqdeploy.exporters.selector import SELECTORS
from emqdeploy.exporters.storage import Stored
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.segment import NATIVE
from emqdeploy.graph.native_graph import STORED_AS, native_model, native_stored_as
from emqdeploy.graph.selector import selector_values


@SELECTORS.register(NATIVE)
def select_natively(checkpoint: Checkpoint, path: Path, children: Sequence[Child]) -> Stored:
    """Full speed and the size of one child; needs emqdeploy-native where it runs."""
    model = native_model(checkpoint, children)
    values = selector_values(children)
    return Stored(
        sealed(model, checkpoint, list(values), STORED_AS, selector=NATIVE), native_stored_as(checkpoint.network)
    )
