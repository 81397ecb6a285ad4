"""From a trained network to its deployed form: frozen numbers, and the torch reference that computes with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from emqdeploy.errors import EmqError
from emqdeploy.format.child import Child, in_order
from emqdeploy.format.frozen import FrozenLayer, FrozenNetwork, FrozenSite
from emqdeploy.format.grid import CodeRange, Grid, fold, needs_clamp
from emqdeploy.quant.activations import ActivationQuantizer
from emqdeploy.quant.layers import QuantLayer
from emqdeploy.quant.network import MultiBitNetwork


@torch.no_grad()
def freeze(network: MultiBitNetwork, children: Sequence[Child]) -> FrozenNetwork:
    """Quantizes every layer at every child and folds the normalizations; which child is in use does not matter."""
    ordered = in_order(children)
    sites = {
        name: FrozenSite(
            signed=site.signed,
            bits={child: site.bits_of(child) for child in ordered},
            scales={child: site.scale(child) for child in ordered},
            clamped=needs_clamp(site.signed, [site.bits_of(child) for child in ordered]),
            levels=site.levels,
            zero_point=site.zero_point,
        )
        for name, site in network.sites.items()
    }
    layers = {name: _freeze_layer(network, name, layer, sites, ordered) for name, layer in network.layers.items()}
    floats = {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.float_parameters().items()}
    return FrozenNetwork(layers, sites, ordered, floats)


def _freeze_layer(
    network: MultiBitNetwork, name: str, layer: QuantLayer, sites: dict[str, FrozenSite], children: Sequence[Child]
) -> FrozenLayer:
    site = network.layer_input[name]
    channels = layer.weight.shape[0]
    quantized = {bits: layer.quantized(bits) for bits in {child.weights.of(name) for child in children}}
    grids, biases = {}, {}
    for child in children:
        one = quantized[child.weights.of(name)]
        gain, shift = np.ones(channels), np.zeros(channels)
        if name in network.norm_of:
            folded = network.norms[network.norm_of[name]].gain_and_shift(child)
            gain, shift = (tensor.cpu().numpy() for tensor in folded)
        grid = Grid(
            one.scale.cpu().numpy().astype(np.float32),
            one.slope.cpu().numpy().astype(np.int16),
            one.offset.cpu().numpy().astype(np.int16),
            one.bits.cpu().numpy().astype(np.uint8),
            layer.quantizer.kind,
            None if one.table is None else one.table.cpu().numpy().astype(np.int8),
        )
        bias = layer.deployed_bias(one).double().cpu().numpy()
        grids[child], biases[child] = fold(grid, bias, gain, shift, sites[site].scales[child])
    codes = next(iter(quantized.values())).codes.cpu().numpy()
    return FrozenLayer(site, codes.astype(np.int8) if layer.pinned else codes.astype(np.uint8), grids, biases)


class DeployedLayer(nn.Module):
    """A convolution or linear layer computing in float what the integer kernel computes exactly.

    Weights are ``scale * z``, the bias is its int32 rounding times its scale.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: QuantLayer, name: str, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        column = (-1,) + (1,) * (layer.weight.dim() - 1)
        scale = torch.tensor(arrays[f"{name}.weight_scale"])
        weight = torch.tensor(arrays[f"{name}.weight"]).float() * scale.reshape(column)
        bias = torch.tensor(arrays[f"{name}.bias"]).float() * torch.tensor(arrays[f"{name}.bias_scale"])
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.conv = None
        if isinstance(layer, nn.Conv2d):
            self.conv = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the layer."""
        if self.conv is None:
            return F.linear(x, self.weight, self.bias)
        stride, padding, dilation, groups = self.conv
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)


class DeployedSite(nn.Module):
    """An activation tensor put on its deployed grid."""

    def __init__(self, scale: float, codes: CodeRange) -> None:
        super().__init__()
        self.scale = scale
        self.low, self.high = codes.low - codes.zero_point, codes.steps

    def forward(self, x: Tensor) -> Tensor:
        """Rounds to the grid as QuantizeLinear does: division, round half to even, clamp."""
        return torch.round(x / self.scale).clamp(self.low, self.high) * self.scale


def deployed_reference(network: MultiBitNetwork, frozen: FrozenNetwork, child: Child) -> fx.GraphModule:
    """Returns the torch network that computes with the frozen numbers at a child.

    Args:
        network: gives the structure only; its weights do not matter.
        frozen: the numbers.
        child: a stored one.

    Raises:
        EmqError: the numbers are those of another structure.
    """
    strange = {*network.layers, *network.sites} ^ {*frozen.layers, *frozen.sites}
    if strange:
        raise EmqError(
            f"the file and the model that it names differ in {sorted(strange)[0]!r}: another version of emqdeploy or of"
            " the model's library wrote it; make the file anew"
        )
    arrays = frozen.initializers(child)

    def layer(name: str, module: QuantLayer) -> nn.Module:
        return DeployedLayer(module, name, arrays)

    def site(name: str, module: ActivationQuantizer) -> nn.Module:
        return DeployedSite(float(arrays[f"{name}.scale"]), frozen.sites[name].code_range(child))

    module = network.rebuild(layer, site, lambda name, site: nn.Identity())
    for name, array in frozen.floats.items():
        owner, _, leaf = name.rpartition(".")
        getattr(module.get_submodule(owner), leaf).data = torch.tensor(array)
    return module.eval()
