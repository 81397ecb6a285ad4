"""A network as torch's ONNX exporter gets it, and what it makes of it: quantizers and layers are opaque markers.

A marker computes nothing but its output's shape. Operators of which the exporter makes something worse than they are
are written in plain ones first.
"""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence

import onnx
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from emqdeploy.errors import EmqError
from emqdeploy.quant.attention import plain_attention
from emqdeploy.quant.layers import SITES, QuantLayer
from emqdeploy.quant.network import MultiBitNetwork

OPSET = 21
DOMAIN = "emq"
"""Of the markers."""

_Attributes = dict[str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]]


_MOST_KEPT = 16

_EXPORTED: dict[bytes, bytes] = {}
"""The latest exports by what was exported, for the exporter takes seconds: a network is exported to prove that it can
be, and again when its numbers are known, and a run may train many networks of one structure."""


def marked_graph(network: MultiBitNetwork, floats: Iterable[str], input_shape: tuple[int, int, int]) -> ir.Model:
    """Exports a network with a marker in the place of every layer, every quantizer and every float parameter.

    Args:
        network: its structure is what counts.
        floats: names of the parameters that stay in float.
        input_shape: ``(C, H, W)`` of one image.

    Returns:
        a model of input ``images`` and output ``logits``, the caller's own.

    Raises:
        EmqError: the exporter fails.
    """
    taps = network.taps()
    module = network.rebuild(
        _LayerMarker,
        lambda name, site: _SiteMarker(name, alias=False, clamps=taps[name] == f"{SITES}{name}"),
        lambda name, site: _SiteMarker(site, alias=True, clamps=taps[site] == name),
    ).eval()
    floats = tuple(floats)
    structure = _structure(module, floats, input_shape)
    data = _EXPORTED.get(structure)
    if data is None:
        _mark_floats(module, floats)
        _write_plainly(module)
        data = ir.to_proto(_export(module, input_shape)).SerializeToString()
        if structure:
            _EXPORTED[structure] = data
        while len(_EXPORTED) > _MOST_KEPT:
            del _EXPORTED[next(iter(_EXPORTED))]
    return ir.from_proto(onnx.load_from_string(data))


def _structure(module: fx.GraphModule, floats: tuple[str, ...], input_shape: tuple[int, int, int]) -> bytes:
    """All that decides how a module is exported; of the tensors that stay in float their shapes. Empty if unknown."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False), *module.named_children()]
    written = io.BytesIO()
    try:
        _Structure(written, map(tensors.get, floats)).dump((module.code, own, floats, input_shape))
    except (pickle.PicklingError, AttributeError, TypeError, ValueError):  # a class without a name, or a circle
        return b""
    return written.getvalue()


class _Structure(pickle.Pickler):
    """Writes tensors as what they hold, and those that a checkpoint supplies as their shapes."""

    def __init__(self, file: io.BytesIO, open_: Iterable[Tensor | None]) -> None:
        super().__init__(file)
        self.fast = True  # what is written twice says nothing of which strings are one object
        self.open = set(map(id, open_))

    def persistent_id(self, value: object) -> object:
        if not isinstance(value, Tensor):
            return None
        data = b"" if id(value) in self.open else value.detach().cpu().numpy().tobytes()
        return str(value.dtype), tuple(value.shape), data


def _export(module: fx.GraphModule, input_shape: tuple[int, int, int]) -> ir.Model:
    example = torch.zeros(2, *input_shape)
    with quiet_export():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["images"],
                output_names=["logits"],
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:
            raise EmqError(_reason(module, error)) from error
    assert program is not None
    return program.model


class _LayerMarker(nn.Module):
    """Stands for a layer in the exported graph; computes only its output shape."""

    def __init__(self, name: str, layer: QuantLayer) -> None:
        super().__init__()
        self.name = name
        self.features = layer.weight.shape[0]
        self.attributes: _Attributes = {"layer": name, "kind": "Gemm"}
        self.window: list[tuple[int, int]] = []
        if isinstance(layer, nn.Conv2d):
            if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
                raise EmqError(f"layer {name!r} pads with {layer.padding_mode!r}; integer kernels pad with zeros only")
            (pad_h, pad_w), kernel = layer.padding, layer.kernel_size
            self.attributes |= {
                "kind": "Conv",
                "strides": list(layer.stride),
                "pads": [pad_h, pad_w, pad_h, pad_w],
                "dilations": list(layer.dilation),
                "group": layer.groups,
                "kernel_shape": list(kernel),
            }
            spans = [2 * p - d * (k - 1) - 1 for p, d, k in zip(layer.padding, layer.dilation, kernel, strict=True)]
            self.window = list(zip(spans, layer.stride, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Emits the marker."""
        if self.window:
            sizes = [(x.shape[2 + i] + span) // stride + 1 for i, (span, stride) in enumerate(self.window)]
            shape = [x.shape[0], self.features, *sizes]
        else:
            shape = [*x.shape[:-1], self.features]
        return torch.onnx.ops.symbolic(f"{DOMAIN}::Layer", (x,), self.attributes, dtype=x.dtype, shape=shape)


class _SiteMarker(nn.Module):
    """Stands for a quantizer in the exported graph."""

    def __init__(self, name: str, alias: bool, clamps: bool) -> None:
        super().__init__()
        self.attributes: _Attributes = {"site": name, "alias": int(alias), "clamps": int(clamps)}

    def forward(self, x: Tensor) -> Tensor:
        """Emits the marker."""
        return torch.onnx.ops.symbolic(f"{DOMAIN}::Site", (x,), self.attributes, dtype=x.dtype, shape=x.shape)


class _FloatMarker(nn.Module):
    """Stands for a parameter that stays in float: the exporter would merge those that happen to be equal."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.attributes: _Attributes = {"float": name}

    def forward(self, x: Tensor) -> Tensor:
        """Emits the marker."""
        return torch.onnx.ops.symbolic(f"{DOMAIN}::Float", (x,), self.attributes, dtype=x.dtype, shape=x.shape)


def _mark_floats(module: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        owner, _, leaf = name.rpartition(".")
        parametrize.register_parametrization(module.get_submodule(owner), leaf, _FloatMarker(name), unsafe=True)


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Silences the exporter's progress lines; what it warns of concerns operators that are not in this graph."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _reason(module: fx.GraphModule, error: BaseException) -> str:
    """What the exporter could not take, in one sentence: its own is a page that starts with a headline."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    operator = re.search(r"No ONNX function found for <OpOverload\(op='\w+\.(\w+)'", str(chain[-1]))
    if operator is None:
        return f"the ONNX exporter cannot export this model: {next(iter(str(chain[-1]).splitlines()), '')}"
    called = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    kinds = {name: type(module.get_submodule(name)).__name__ for name in called}
    where = [f"module {name!r} of type {kind}" for name, kind in kinds.items() if kind.lower() in operator[1]]
    return f"ONNX has nothing for operator {operator[1]!r} ({', '.join(where) or 'of the forward'}); use another one"


# --- plain operators ---

_ONE = (1, (1, 1), [1, 1])


def _write_plainly(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.target is F.scaled_dot_product_attention:
            node.target = plain_attention
        elif node.target is torch.einsum and len(node.args) == 3:
            node.target = _plain_einsum
        elif _is_global_mean(module, node):
            # Of a tensor that was transposed before, the exporter gathers what the mean gave value by value.
            node.op, node.target = "call_function", _global_mean
            node.args, node.kwargs = tuple(node.all_input_nodes), {}
    module.recompile()


def _plain_einsum(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """A product of matrices where it is one, of whatever axes; any other sum stays as it is."""
    inputs, _, given = equation.replace(" ", "").partition("->")
    left, _, right = inputs.partition(",")
    batch = [axis for axis in left if axis in right and axis in given]
    rows, columns = ([axis for axis in one if axis not in other] for one, other in ((left, right), (right, left)))
    summed = [axis for axis in left if axis in right and axis not in given]
    if (
        "." in equation
        or not (len(rows) == len(columns) == len(summed) == 1)
        or set(given) != {*batch, *rows, *columns}
    ):
        return torch.einsum(equation, a, b)
    product = a.permute([left.index(axis) for axis in batch + rows + summed]) @ b.permute(
        [right.index(axis) for axis in batch + summed + columns]
    )
    return product.permute([(batch + rows + columns).index(axis) for axis in given])


def _global_mean(x: Tensor) -> Tensor:
    """Maps ``(N, C, H, W)`` to means ``(N, C, 1, 1)``."""
    return x.mean((2, 3), keepdim=True)


def _is_global_mean(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return isinstance(called, nn.AdaptiveAvgPool2d) and called.output_size in _ONE
    options = {**dict(zip(("input", "output_size"), node.args, strict=False)), **node.kwargs}
    return node.target is F.adaptive_avg_pool2d and options["output_size"] in _ONE
