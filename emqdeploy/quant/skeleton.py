"""The weightless ONNX graph of a network: standard QDQ operators, every number of a bit-width left open.

The exporter never sees a quantizer: layers and sites go through it as opaque markers, and passes on the exported graph
expand each marker. Markers in must equal quantizers out, so nothing is matched by guesswork.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from emqdeploy.errors import EmqError
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.graph.moves import carry_codes
from emqdeploy.quant.marked_graph import DOMAIN, marked_graph
from emqdeploy.quant.network import MultiBitNetwork

EXTERNAL_FILE = "emq"
"""File name in the external-data records of the skeleton; the runtime replaces them all, the file never exists."""

_TOKENS = "/tokens"


def export_skeleton(network: MultiBitNetwork, frozen: FrozenNetwork, input_shape: tuple[int, int, int]) -> bytes:
    """Exports the QDQ graph of a network without its numbers.

    Args:
        network: the network; its structure is what counts.
        frozen: says which sites need the integer clamp.
        input_shape: ``(C, H, W)`` of one image.

    Returns:
        a serialised ONNX model: input ``images`` float32 ``(N, C, H, W)``, output ``logits``; every array of
        `FrozenNetwork.initializers` is an external initializer of that name.

    Raises:
        EmqError: the exporter fails, or a quantizer was lost on the way.
    """
    model = marked_graph(network, frozen.floats, input_shape)
    shapes = {name: tuple(layer.weight.shape) for name, layer in network.layers.items()}
    _Expander(model, shapes, frozen).run()
    model.producer_name, model.producer_version, model.ir_version = "emqdeploy", "", 10
    model.graph.name = "emqdeploy"
    model.metadata_props.clear()
    proto = ir.to_proto(model)
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        del value.metadata_props[:]
    del proto.graph.value_info[:]
    carry_codes(proto)
    return proto.SerializeToString(deterministic=True)


class _Expander:
    """Turns markers into standard operators."""

    def __init__(
        self,
        model: ir.Model,
        weight_shapes: dict[str, tuple[int, ...]],
        frozen: FrozenNetwork,
    ) -> None:
        self.graph = model.graph
        self.model = model
        self.weight_shapes = weight_shapes
        self.sites = frozen.sites
        self.floats = frozen.floats
        self.arrays: dict[str, ir.Value] = {}

    def run(self) -> None:
        expand = {"Layer": self._layer, "Site": self._site, "Float": self._float}
        found: dict[str, set[str]] = {kind: set() for kind in expand}
        for node in list(self.graph):
            if node.domain == DOMAIN:
                found[node.op_type].add(node.attributes[node.op_type.lower()].as_string())
                expand[node.op_type](node)
            elif node.op_type == "ReduceMean":
                self._global_average(node)
        for kind, names in (("Layer", self.weight_shapes), ("Site", self.sites), ("Float", self.floats)):
            if found[kind] != set(names):
                lost = ", ".join(sorted(set(names) - found[kind]))
                raise EmqError(
                    f"the exported graph has {len(found[kind])} of {len(names)} {kind.lower()} markers; lost: {lost}"
                )
        self.model.opset_imports.pop(DOMAIN, None)
        used = {value for node in self.graph for value in node.inputs}
        for name, value in list(self.graph.initializers.items()):
            if value not in used:
                del self.graph.initializers[name]

    @staticmethod
    def _flag(node: ir.Node, name: str) -> bool:
        return name in node.attributes and bool(node.attributes[name].as_int())

    def _open(self, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        """An initializer whose data a bit-width supplies."""
        if name not in self.arrays:
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            tensor = ir.ExternalTensor(EXTERNAL_FILE, 0, int(size), dtype, shape=ir.Shape(shape), name=name)
            self.arrays[name] = self._register(name, tensor, shape)
        return self.arrays[name]

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        if name not in self.arrays:
            self.arrays[name] = self._register(name, ir.tensor(array, name=name), array.shape)
        return self.arrays[name]

    def _register(self, name: str, tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def _replace(self, node: ir.Node, new: list[ir.Node]) -> None:
        output = new[-1].outputs[0]
        output.shape, output.type = node.outputs[0].shape, node.outputs[0].type
        self.graph.insert_before(node, new)
        if node.outputs[0].is_graph_output():
            output.name = node.outputs[0].name
        node.outputs[0].replace_all_uses_with(output, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def _site(self, node: ir.Node) -> None:
        name = node.attributes["site"].as_string()
        alias = self._flag(node, "alias")
        label = f"{node.outputs[0].name}" if alias else name
        scale = self._open(f"{name}.scale", ir.DataType.FLOAT, ())
        zero = self._constant(f"{name}.zero_point", np.array(self.sites[name].code_of_zero, np.uint8))
        source, tokens = node.inputs[0], self._tokens(node)
        if tokens is not None:
            source = tokens.inputs[0]
        nodes = [ir.node("QuantizeLinear", [source, scale, zero], name=f"{label}/quantize")]
        # Repeating a site does not change its codes, so they are clamped only once.
        clamps = self._flag(node, "clamps")
        if self.sites[name].clamped and clamps:
            # An integer Clip stays outside the fusions, where a float one would break them, and costs less than a Min.
            bounds = [self._open(f"{name}.{end}", ir.DataType.UINT8, ()) for end in ("low", "high")]
            nodes.append(ir.node("Clip", [nodes[-1].outputs[0], *bounds], name=f"{label}/clamp"))
        nodes[-1].outputs[0].name = f"{name}/codes" if clamps else f"{label}/steps"
        nodes.append(ir.node("DequantizeLinear", [nodes[-1].outputs[0], scale, zero], name=f"{label}/dequantize"))
        if tokens is not None:
            nodes += self._repeat_site(nodes[-1], tokens.inputs[1], f"{label}/tokens")
        self._replace(node, nodes)
        if tokens is not None:
            self.graph.remove(tokens, safe=True)

    @staticmethod
    def _tokens(site: ir.Node) -> ir.Node | None:
        """The reshape between a linear layer and a site that alone reads it; behind the site it would move bytes."""
        source = site.inputs[0]
        producer = None if source is None else source.producer()
        alone = source is not None and len(source.uses()) == 1
        return producer if producer is not None and alone and (producer.name or "").endswith(_TOKENS) else None

    def _float(self, node: ir.Node) -> None:
        name = node.attributes["float"].as_string()
        value = self._open(name, ir.DataType.FLOAT, self.floats[name].shape)
        node.outputs[0].replace_all_uses_with(value)
        self.graph.remove(node, safe=True)

    def _layer(self, node: ir.Node) -> None:
        name = node.attributes["layer"].as_string()
        kind = node.attributes["kind"].as_string()
        shape = self.weight_shapes[name]
        channels = shape[:1]
        weight = ir.node(
            "DequantizeLinear",
            [
                self._open(f"{name}.weight", ir.DataType.INT8, shape),
                self._open(f"{name}.weight_scale", ir.DataType.FLOAT, channels),
                self._constant(f"{name}.weight_zero_point", np.zeros(channels, np.int8)),
            ],
            {"axis": 0},
            name=f"{name}/weight",
        )
        bias = ir.node(
            "DequantizeLinear",
            [
                self._open(f"{name}.bias", ir.DataType.INT32, channels),
                self._open(f"{name}.bias_scale", ir.DataType.FLOAT, channels),
            ],
            {"axis": 0},
            name=f"{name}/bias",
        )
        keys = ("strides", "pads", "dilations", "kernel_shape")
        attributes: dict[str, int | list[int]] = {}
        if kind == "Conv":
            attributes |= {key: list(node.attributes[key].as_ints()) for key in keys}
            attributes["group"] = node.attributes["group"].as_int()
        if kind == "Gemm":
            self._linear(node, [weight, bias], name)
        else:
            inputs = [node.inputs[0], weight.outputs[0], bias.outputs[0]]
            self._replace(node, [weight, bias, ir.node(kind, inputs, attributes, name=name)])

    def _linear(self, node: ir.Node, parameters: list[ir.Node], name: str) -> None:
        """A linear layer as Gemm: of all matrix products onnxruntime fuses only this one with an integer bias.

        Gemm knows rows and columns only, so further dimensions join the batch before it and leave it behind it.
        """
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        shape = None if output.shape is None else list(output.shape)
        if shape is None or len(shape) == 2:
            rows, before, after = source, [], []
        else:
            if sum(not isinstance(size, int) for size in shape) > 1:
                raise EmqError(f"linear layer {name!r} reads a tensor of shape {shape}: only the batch may be free")
            features = self.weight_shapes[name][1]
            dequantize = source.producer()
            assert dequantize is not None
            before = self._repeat_site(dequantize, self._shape([-1, features]), f"{name}/rows")
            rows = before[-1].outputs[0]
            sizes = self._shape([size if isinstance(size, int) else -1 for size in shape])
            after = [ir.node("Reshape", [None, sizes], name=f"{name}{_TOKENS}")]
        product = ir.node("Gemm", [rows, *(part.outputs[0] for part in parameters)], {"transB": 1}, name=name)
        product.outputs[0].name = f"{name}/values"
        if after:
            after[0].replace_input_with(0, product.outputs[0])
        self._replace(node, [*parameters, *before, product, *after])

    def _shape(self, sizes: list[int]) -> ir.Value:
        return self._constant(f"shape_{'x'.join(map(str, sizes))}", np.array(sizes, np.int64))

    @staticmethod
    def _repeat_site(dequantize: ir.Node, shape: ir.Value | None, name: str) -> list[ir.Node]:
        """Reshapes a dequantized tensor and tells the runtime that it is still on its grid."""
        nodes = [ir.node("Reshape", [dequantize.outputs[0], shape], name=f"{name}/reshape")]
        for kind in ("QuantizeLinear", "DequantizeLinear"):
            inputs = [nodes[-1].outputs[0], *dequantize.inputs[1:]]
            nodes.append(ir.node(kind, inputs, name=f"{name}/{kind.removesuffix('Linear').lower()}"))
        return nodes

    def _global_average(self, node: ir.Node) -> None:
        """A mean over height and width is the pooling that integer runtimes know."""
        source, axes_value, *_ = *node.inputs, None
        axes = axes_value.const_value if axes_value is not None else None
        rank = len(source.shape) if source is not None and source.shape is not None else 0
        if axes is None or rank != 4 or sorted(int(axis) % 4 for axis in axes.numpy()) != [2, 3]:
            return
        nodes = [ir.node("GlobalAveragePool", [node.inputs[0]], name=f"{node.name}/average")]
        if "keepdims" in node.attributes and node.attributes["keepdims"].as_int() == 0:
            nodes.append(ir.node("Flatten", [nodes[0].outputs[0]], {"axis": 1}, name=f"{node.name}/flatten"))
        self._replace(node, nodes)
