"""Tools that quantize a trained network without training, each at the settings that its own documentation recommends.

All get the same float network and the same calibration images, and answer as they would be deployed or, where a tool
has no runtime for its widths, as its own simulation does. Weights are symmetric per output channel, activations have 8
bits. Below 8 bits the first and the last layer stay at 8, as ours do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.latency import static_quantized
from benchmarks.openvino_latency import nncf_quantized
from emqdeploy.format.bundle import INPUT
from emqdeploy.format.child import Child
from emqdeploy.format.grid import Floats
from emqdeploy.quant.deploy import deployed_reference
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.registry import Registry
from emqdeploy.runtimes.onnx_session import create_session, session_options
from emqdeploy.training.augment import BatchFunction
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.quantize import calibrate
from emqdeploy.workflows.baselines import export_float

WIDTHS = (8, 4, 3, 2)
"""Of weights: those that are compared."""

BATCH = 64

Answer = Callable[[Floats], Floats]
"""Normalised images ``(N, C, H, W)`` to logits ``(N, classes)``."""


@dataclass(frozen=True)
class Given:
    """What every tool quantizes.

    Attributes:
        network: makes the float network, and a multi-bit one with these children, anew.
        batches: the calibration images, normalised, ``(B, C, H, W)`` each.
        vary: makes more images of them, as training on this data would.
        effort: share of the steps that a tool recommends; those of AdaRound take an hour or more per width on a CPU.
    """

    network: Callable[[Sequence[Child]], tuple[nn.Module, MultiBitNetwork]]
    batches: list[torch.Tensor]
    vary: BatchFunction
    effort: float = 1.0

    @property
    def model(self) -> nn.Module:
        """A float network that may be changed, in evaluation mode."""
        return copy.deepcopy(self._model)

    @cached_property
    def _model(self) -> nn.Module:
        return self.network([Child.of(8)])[0]

    @property
    def images(self) -> Floats:
        """All calibration images, ``(N, C, H, W)``."""
        return np.concatenate([batch.numpy() for batch in self.batches])

    @cached_property
    def onnx(self) -> bytes:
        """The float network as ONNX, for any number of images."""
        _, *shape = self.batches[0].shape
        return export_float(self.model, (shape[0], shape[1], shape[2]))

    @cached_property
    def ends(self) -> tuple[str, str]:
        """The names of the first and the last layer with weights."""
        layers = [name for name, module in self._model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        return layers[0], layers[-1]


@dataclass(frozen=True)
class Tool:
    """A way to quantize.

    Attributes:
        package: that has to be installed, as pip calls it.
        module: as Python imports it.
        widths: of weights, that it offers for convolutions.
        settings: what was chosen, for people.
        quantize: makes a network per width.
    """

    package: str
    module: str
    widths: tuple[int, ...]
    settings: str
    quantize: Callable[[Given, Sequence[int]], Iterator[tuple[int, Answer]]]


TOOLS: Registry[Tool] = Registry("tool")


def _one_by_one(make: Callable[[Given, int], Answer]) -> Callable[[Given, Sequence[int]], Iterator[tuple[int, Answer]]]:
    """A network of its own for every width."""
    return lambda given, widths: ((bits, make(given, bits)) for bits in widths)


def of_module(module: nn.Module) -> Answer:
    """What a network of torch answers, in evaluation mode."""

    def answer(images: Floats) -> Floats:
        with torch.inference_mode():
            found: Floats = module(torch.from_numpy(images)).numpy()
        return found

    return answer


# --- ours -----------------------------------------------------------------------------------------------------------


def _ours(reconstruction: str) -> Callable[[Given, Sequence[int]], Iterator[tuple[int, Answer]]]:
    """All widths in one file, whichever are asked for: learning takes them in turns."""

    def quantize(given: Given, widths: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        children = [Child.of(bits) for bits in WIDTHS]
        _, network = given.network(children)
        config = QuantizeConfig(Path(), None, "", bits=WIDTHS, reconstruction=reconstruction)
        frozen = calibrate(network, given.batches, config, print, given.vary)
        for bits in widths:
            yield bits, of_module(deployed_reference(network, frozen, Child.of(bits)))

    return quantize


for _name, _way in (("ours rounded", "none"), ("ours reconstructed", "blocks")):
    TOOLS.register(_name)(Tool("emqdeploy", "emqdeploy", WIDTHS, "defaults; one file for all widths", _ours(_way)))


# --- onnxruntime ----------------------------------------------------------------------------------------------------


def _onnxruntime(given: Given, bits: int) -> Answer:
    session = create_session(static_quantized(given.onnx, given.images), session_options())
    return lambda images: np.asarray(session.run(None, {INPUT: images})[0])


TOOLS.register("onnxruntime static")(
    Tool(
        "onnxruntime",
        "onnxruntime",
        (8,),
        "QDQ, pre-processed, weights per channel, uint8 activations by their extremes",
        _one_by_one(_onnxruntime),
    )
)


# --- NNCF -----------------------------------------------------------------------------------------------------------


def _nncf(given: Given, bits: int) -> Answer:
    import openvino

    compiled = openvino.Core().compile_model(nncf_quantized(given.onnx, given.images), "CPU")
    return lambda images: np.asarray(compiled(images)[0])


TOOLS.register("NNCF")(
    Tool("nncf", "nncf", (8,), "defaults (performance preset, fast bias correction), in OpenVINO", _one_by_one(_nncf))
)


# --- Brevitas -------------------------------------------------------------------------------------------------------

EQUALIZATION_STEPS = 20
"""Of Brevitas, as in the best configurations that it publishes."""


def _brevitas(given: Given, bits: int) -> Answer:
    """GPTQ and then bias correction, on weights whose scales have the least squared error."""
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
    from brevitas.graph.gptq import gptq_mode
    from brevitas.graph.quantize import (
        COMPUTE_LAYER_MAP,
        QUANT_ACT_MAP,
        QUANT_IDENTITY_MAP,
        preprocess_for_quantize,
        quantize,
    )
    from brevitas.quant import Int8WeightPerChannelFloatMSE

    model = preprocess_for_quantize(given.model, equalize_iters=EQUALIZATION_STEPS)
    ends = [model.get_submodule(name) for name in given.ends]
    weights: dict[str, Any] = {
        "weight_quant": Int8WeightPerChannelFloatMSE,
        "weight_bit_width": lambda layer: 8 if any(layer is end for end in ends) else bits,
        "bias_quant": None,  # its scale would need tensors that carry theirs
    }
    layers = {kind: made and (made[0], made[1] | weights) for kind, made in _bare(COMPUTE_LAYER_MAP).items()}
    model = quantize(model, _bare(QUANT_IDENTITY_MAP), layers, _bare(QUANT_ACT_MAP))
    with torch.no_grad():
        model(given.batches[0])  # sets the scales of the weights
        with calibration_mode(model):
            _show(model, given)
        with gptq_mode(model, use_quant_activations=False) as gptq:
            for _ in range(gptq.num_layers):
                _show(gptq.model, given)
                gptq.update()
        with bias_correction_mode(model):
            _show(model, given)
    return of_module(model)


def _bare(kinds: dict[Any, Any]) -> dict[Any, Any]:
    """Quantizers whose tensors are plain ones, which networks may also slice and pad."""
    return {kind: made and (made[0], made[1] | {"return_quant_tensor": False}) for kind, made in kinds.items()}


def _show(model: nn.Module, given: Given) -> None:
    for images in torch.from_numpy(given.images).split(BATCH):
        model(images)


TOOLS.register("Brevitas GPTQ")(
    Tool(
        "brevitas",
        "brevitas",
        WIDTHS,
        "equalization, weight scales by least error, GPTQ, bias correction; simulated",
        _one_by_one(_brevitas),
    )
)


# --- AIMET ----------------------------------------------------------------------------------------------------------


def _aimet(given: Given, bits: int) -> Answer:
    """Scales by the least error of what layers give (sequential MSE), and then AdaRound."""
    import aimet_onnx
    import onnx
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
    from aimet_onnx.common.quantsim_config.utils import get_path_for_per_channel_config

    model = onnx.load_from_string(given.onnx)
    fold_all_batch_norms_to_weight(model)
    weights = [node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    sim = aimet_onnx.QuantizationSimModel(
        model,
        param_type=aimet_onnx.qtype.int(bits),
        activation_type=aimet_onnx.int8,
        config_file=get_path_for_per_channel_config(),
    )
    for name in (weights[0], weights[-1]):
        sim.qc_quantize_op_dict[name].set_bitwidth(8)
    inputs = [{INPUT: images.numpy()} for images in torch.from_numpy(given.images).split(AIMET_BATCH)]
    aimet_onnx.apply_seq_mse(sim, inputs)
    recommended = ADAROUND_ITERATIONS if bits >= 8 else ADAROUND_ITERATIONS_OF_FEW_BITS
    aimet_onnx.apply_adaround(sim, inputs, num_iterations=max(1, round(given.effort * recommended)))
    sim.compute_encodings(inputs)
    return lambda images: np.asarray(sim.session.run(None, {INPUT: images})[0])


AIMET_BATCH, ADAROUND_ITERATIONS, ADAROUND_ITERATIONS_OF_FEW_BITS = 32, 10_000, 15_000
"""What AIMET recommends, per layer."""

TOOLS.register("AIMET AdaRound")(
    Tool(
        "aimet-onnx",
        "aimet_onnx",
        WIDTHS,
        "normalizations folded, sequential MSE, AdaRound; simulated",
        _one_by_one(_aimet),
    )
)
