"""From a trained network to its deployed form: frozen numbers, and the torch reference that computes with them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from emqdeploy.frozen import FrozenLayer, FrozenNetwork, FrozenSite
from emqdeploy.grid import CodeRange, Grid, activation_bits, fold
from emqdeploy.quant.activations import ActivationQuantizer
from emqdeploy.quant.layers import QuantLayer
from emqdeploy.quant.network import MultiBitNetwork


@torch.no_grad()
def freeze(network: MultiBitNetwork, widths: tuple[int, ...]) -> FrozenNetwork:
    """Quantizes every layer at every bit-width in ``widths`` and folds the normalizations."""
    sites = {
        name: FrozenSite(
            signed=site.signed,
            bits={bits: activation_bits(site.setting, bits) for bits in widths},
            scales={bits: site.scale(bits) for bits in widths},
        )
        for name, site in network.sites.items()
    }
    layers = {name: _freeze_layer(network, name, layer, sites, widths) for name, layer in network.layers.items()}
    floats = {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.float_parameters().items()}
    return FrozenNetwork(layers, sites, tuple(sorted(widths)), floats)


def _freeze_layer(
    network: MultiBitNetwork, name: str, layer: QuantLayer, sites: dict[str, FrozenSite], widths: tuple[int, ...]
) -> FrozenLayer:
    site = network.layer_input[name]
    channels = layer.weight.shape[0]
    grids, biases = {}, {}
    codes = np.zeros(0, np.uint8)
    for bits in widths:
        quantized = layer.quantized(bits)
        gain, shift = np.ones(channels), np.zeros(channels)
        if name in network.norm_of:
            folded = network.norms[network.norm_of[name]].gain_and_shift(bits)
            gain, shift = (tensor.cpu().numpy() for tensor in folded)
        grid = Grid(
            quantized.scale.cpu().numpy().astype(np.float32),
            quantized.slope.cpu().numpy().astype(np.int16),
            quantized.offset.cpu().numpy().astype(np.int16),
            quantized.bits.cpu().numpy().astype(np.uint8),
        )
        bias = layer.deployed_bias(quantized).double().cpu().numpy()
        grids[bits], biases[bits] = fold(grid, bias, gain, shift, sites[site].scales[bits])
        codes = quantized.codes.cpu().numpy().astype(np.int8 if layer.pinned else np.uint8)
    return FrozenLayer(site, codes, grids, biases)


class DeployedLayer(nn.Module):
    """A convolution or linear layer computing in float what the integer kernel computes exactly.

    Weights are ``scale * z``, the bias is its int32 rounding times its scale.
    """

    def __init__(self, layer: QuantLayer, name: str, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        column = (-1,) + (1,) * (layer.weight.dim() - 1)
        scale = torch.tensor(arrays[f"{name}.weight_scale"])
        self.weight = torch.tensor(arrays[f"{name}.weight"]).float() * scale.reshape(column)
        self.bias = torch.tensor(arrays[f"{name}.bias"]).float() * torch.tensor(arrays[f"{name}.bias_scale"])
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


def deployed_reference(network: MultiBitNetwork, frozen: FrozenNetwork, bits: int) -> fx.GraphModule:
    """Returns the torch network that computes with the frozen numbers at ``bits``.

    Args:
        network: gives the structure only; its weights do not matter.
        frozen: the numbers.
        bits: a stored bit-width.
    """
    arrays = frozen.initializers(bits)

    def layer(name: str, module: QuantLayer) -> nn.Module:
        return DeployedLayer(module, name, arrays)

    def site(name: str, module: ActivationQuantizer) -> nn.Module:
        return DeployedSite(float(arrays[f"{name}.scale"]), frozen.sites[name].code_range(bits))

    module = network.rebuild(layer, site, lambda name, site: nn.Identity())
    for name, array in frozen.floats.items():
        owner, _, leaf = name.rpartition(".")
        getattr(module.get_submodule(owner), leaf).data = torch.tensor(array)
    return module.eval()
