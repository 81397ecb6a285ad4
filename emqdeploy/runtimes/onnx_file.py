"""An exported ONNX file in onnxruntime: one bit-width, no checkpoint at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emqdeploy.artefact import METADATA_KEY, check_seal
from emqdeploy.errors import EmqError
from emqdeploy.grid import Floats
from emqdeploy.runtimes.base import LayerPrecision, RuntimeBase, read_model_file
from emqdeploy.runtimes.onnx_runtime import computed_as, create_session, profile_kernels, session_options


class OnnxFileRuntime(RuntimeBase):
    """Runs one exported file.

    Args:
        path: a ``.onnx`` file that `emqdeploy export` wrote.
        threads: threads inside an operator; None uses every core.

    Raises:
        EmqError: the file is missing, truncated, altered or of another program.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self._model = read_model_file(path)
        check_seal(path, self._model)
        self.threads = threads
        self._session: Any = create_session(self._model, session_options(threads))
        self.metadata: dict[str, Any] = json.loads(self._session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        super().__init__((self.metadata["bits"],), tuple(self.metadata["input_shape"]))

    def set_bits(self, bits: int) -> None:
        """Accepts the file's own bit-width only."""
        self.check_bits(bits)

    def __call__(self, images: Floats) -> Floats:
        """Returns logits ``(N, classes)``."""
        if self._session is None:
            raise EmqError("this runtime is closed; open the file again")
        self.check_images(images)
        logits: Floats = self._session.run(("logits",), {"images": images})[0]
        return logits

    def precision(self, bits: int) -> list[LayerPrecision]:
        """Reports every layer; kernels are read from a profile of one real inference."""
        self.check_bits(bits)
        kernels = profile_kernels(self._model, session_options(self.threads), None, self.input_shape)
        grid_bits: dict[str, int] = self.metadata["grid_bits"]
        return [LayerPrecision(name, bits, "int8", computed_as(kernels.get(name))) for name, bits in grid_bits.items()]

    def close(self) -> None:
        """Drops the session."""
        self._session = None
