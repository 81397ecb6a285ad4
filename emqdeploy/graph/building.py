"""Building a graph: nodes in front of those that it has, and constants, with names of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import require


class Builder:
    """Collects nodes that run before those of a graph, with constants and fresh value names.

    Args:
        model: the ONNX model that is extended; call `finish` when every node is there.
        prefix: of the names that the builder invents.
    """

    def __init__(self, model: Any, prefix: str = "emq") -> None:
        self.onnx = require("onnx", "export")
        self.model = model
        self.graph = model.graph
        self.nodes: list[Any] = []
        self._prefix = prefix
        self._count = 0
        self._constants: dict[Any, str] = {}

    def constant(self, array: NDArray[Any] | np.generic, name: str | None = None) -> str:
        """Adds an initializer; small equal ones without a name of their own are shared."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes()) if name is None and array.size <= 64 else None
        if key is not None and key in self._constants:
            return self._constants[key]
        name = name or self._fresh()
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(array, name))
        if key is not None:
            self._constants[key] = name
        return name

    def packed(self, name: str, codes: NDArray[np.uint8], bits: int) -> str:
        """Adds codes as UINT2 or UINT4, several in a byte, the first lowest."""
        per_byte = 8 // bits
        flat = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
        flat[: codes.size] = codes.reshape(-1)
        shifts = (np.arange(per_byte) * bits).astype(np.uint8)
        tensor = self.graph.initializer.add()
        tensor.name, tensor.data_type = name, getattr(self.onnx.TensorProto, f"UINT{bits}")
        tensor.dims.extend(codes.shape)
        # Raw data: the value list of a sub-byte tensor would take more bytes than int8.
        tensor.raw_data = np.bitwise_or.reduce(flat.reshape(-1, per_byte) << shifts, axis=1).tobytes()
        return name

    def external(self, name: str, shape: Sequence[int], dtype: Any, location: str, offset: int) -> str:
        """Adds an initializer whose data lies in another file of the bundle."""
        tensor = self.graph.initializer.add()
        tensor.name, tensor.data_type = name, self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        tensor.dims.extend(shape)
        tensor.data_location = self.onnx.TensorProto.EXTERNAL
        length = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        return name

    def node(self, operator: str, *inputs: str, out: str | None = None, name: str = "", **attributes: Any) -> str:
        """Adds a node of one output and returns the output's name."""
        output = out or self._fresh()
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), [output], name=name, **attributes))
        return output

    def split(self, source: str, sizes: Sequence[int], out: Sequence[str] | None = None) -> list[str]:
        """Splits a value along its first axis."""
        outputs = list(out) if out is not None else [self._fresh() for _ in sizes]
        lengths = self.constant(np.array(sizes, np.int64))
        self.nodes.append(self.onnx.helper.make_node("Split", [source, lengths], outputs, axis=0))
        return outputs

    def cast(self, source: str, dtype: Any, out: str | None = None) -> str:
        """Adds a Cast."""
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", source, out=out, to=kind)

    def reshape(self, source: str, shape: Sequence[int], out: str | None = None) -> str:
        """Adds a Reshape."""
        return self.node("Reshape", source, self.constant(np.array(shape, np.int64)), out=out)

    def drop(self, names: set[str]) -> None:
        """Removes initializers."""
        kept = [tensor for tensor in self.graph.initializer if tensor.name not in names]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def finish(self) -> Any:
        """Puts the collected nodes in front of the graph's own and returns the model."""
        own = list(self.graph.node)
        del self.graph.node[:]
        self.graph.node.extend([*self.nodes, *own])
        return self.model

    def _fresh(self) -> str:
        self._count += 1
        return f"{self._prefix}_{self._count}"
