"""One architecture from float weights to a verified file: what became of it, where it stopped, and how good it is."""

from __future__ import annotations

import re
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.naive_int8 import decibels, naive_snr
from benchmarks.outcomes import CRASH, LATE, LAYERS_IN_FLOAT, REFUSED, WRONG, Outcome
from benchmarks.pictures import CLASSES, MORE
from benchmarks.zoo import Architecture
from emqdeploy.data import load_dataset
from emqdeploy.errors import EmqError
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.levels import FULL
from emqdeploy.models import create_model, import_torchvision, trust
from emqdeploy.runtimes.source import open_source
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.quantize import calibration_batches, quantize
from emqdeploy.workflows.export import export
from emqdeploy.workflows.verify import verify

import_torchvision()  # before timm asks for it: it may need our repair

VERIFIED_IMAGES = 8
"""`verify` runs ONNX's own evaluator too, which is slow; the export is proven on all test images."""


def attempt(architecture: Architecture, pictures: Path) -> Outcome:
    """Takes an architecture all the way; never raises for what it does there.

    Args:
        architecture: what to try.
        pictures: a folder of ``train`` and ``test``, with a folder for each class, and of images in ``more``.
    """
    found = Outcome(architecture.name, architecture.kind, architecture.size)
    started = time.process_time()
    try:
        with tempfile.TemporaryDirectory() as folder:
            _Trial(architecture, pictures, Path(folder), found).run()
    except EmqError as error:
        found.outcome = REFUSED if found.stage in ("build", "trace") else LATE
        found.sentence = str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        found.outcome = CRASH
        reason = next(iter(str(error).splitlines()), "")
        found.sentence = f"{type(error).__name__}: {reason} ({Path(place.filename).name}:{place.lineno})"
    found.sentence = re.sub(rf"{re.escape(tempfile.gettempdir())}/\w+/", "", found.sentence)
    found.seconds = round(time.process_time() - started, 1)
    return found


class _Trial:
    def __init__(self, architecture: Architecture, pictures: Path, folder: Path, found: Outcome) -> None:
        self.model, self.size, self.found = architecture.model, architecture.size, found
        self.pictures, self.folder = pictures, folder

    def run(self) -> None:
        data = f"imagefolder:{self.pictures}"
        dataset = load_dataset(data, image_size=self.size)
        batches = calibration_batches(dataset, len(dataset.train), 0)
        trust(self.model)
        torch.manual_seed(0)
        network = create_model(self.model, CLASSES, 3, self.size)
        settle(network, torch.cat(batches))
        weights = self.folder / "float.pth"
        torch.save(network.state_dict(), weights)
        self.found.stage = "trace"
        run = self.folder / "run"
        # All levels, as the naive int8 has them; and what is too far from the float model is written all the same, so
        # that all of them can be compared.
        options: dict[str, Any] = {"bits": (8,), "levels": FULL, "image_size": self.size}
        options |= {"accept_difference": True, "unlabelled": True}
        config = QuantizeConfig(weights, self.model, data, **options)
        self.found.warning = quantize(config, run, self._note, threads=1).wrong or ""
        self._export(run)
        self._compare(run, network, batches)
        self._verify(run)

    def _note(self, line: str) -> None:
        """Reads from what `quantize` reports whether it has begun with the work that a refusal has to come before."""
        if line.startswith("calibrating"):
            self.found.stage = "calibration"
        elif self.found.stage == "calibration":
            self.found.stage = "after calibration"

    def _export(self, run: Path) -> None:
        self.found.stage = "export"
        settings = ExportSettings(path=run, bits="8", target="onnx", allow_float=True)
        row = export(settings)["artefacts"][0]
        layers, parity = row["layers"], row["parity"]
        self.found.layers = len(layers)
        self.found.integer_layers = row["integer_layers"]
        self.found.float_layers = [layer["name"] for layer in layers if layer["integer"] is False]
        self.found.float_operators = row["float_ops"]
        self.found.codes = parity["codes"] + parity["rounded"]
        self.found.differing = parity["differing_codes"]
        if self.found.float_layers:
            self.found.outcome = LAYERS_IN_FLOAT

    def _compare(self, run: Path, network: nn.Module, batches: list[Tensor]) -> None:
        """Decibels of the file, which is proven to answer as the integer reference does, on more pictures than that."""
        self.found.stage = "comparison"
        source = open_source(run / "bundle", "8")
        pictures = [source.preprocessing.read(path) for path in sorted((self.pictures / MORE).iterdir())]
        images = source.preprocessing.normalize(np.stack(pictures))
        with torch.no_grad():
            wanted = network(torch.from_numpy(images)).numpy()
        self.found.decibels = round(decibels(wanted, source.runtime.run(images, source.children[0])), 1)
        self.found.naive_decibels = round(naive_snr(network, batches, torch.from_numpy(images)), 1)

    def _verify(self, run: Path) -> None:
        self.found.stage = "verify"
        result = verify(run, "8", VERIFIED_IMAGES, model=self.model if ":" in self.model else None)["results"][0]
        # How far the file is from the float model, `quantize` has said already: see `Outcome.warning`.
        wrong = {name: row["wrong"] for name, row in result["rungs"].items() if row["wrong"]} | result["failed"]
        if wrong:
            self.found.outcome = WRONG
            self.found.sentence = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
        self.found.stage = "done"


# --- random weights that behave like trained ones -----------------------------------------------------------------


@torch.no_grad()
def settle(network: nn.Module, images: Tensor) -> None:
    """Draws what starts constant, and makes statistics and sizes of activations those of these images; ends in eval.

    Gains of zero, layer scales of 1e-6 and classifiers of zeros would hide everything before them; a network without
    any normalization fades from layer to layer unless its layers keep the size of what they read.
    """
    network.eval()
    for name, parameter in network.named_parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
            elif parameter.squeeze().dim() == 1:
                nn.init.uniform_(parameter, 0.5, 1.5)
            else:
                nn.init.normal_(parameter, std=0.02)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        if norm.affine:
            norm.bias.add_(1)
        norm.reset_running_stats()
        norm.momentum = None  # the plain average, so one pass is enough
        norm.train()
    hooks = [] if _normalizes(network) else [module.register_forward_hook(_keep_size) for module in layers_of(network)]
    network(images)
    for hook in hooks:
        hook.remove()
    network.eval()


def layers_of(network: nn.Module) -> list[nn.Module]:
    """Convolutions and linear layers."""
    return [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def _normalizes(network: nn.Module) -> bool:
    return any("Norm" in type(module).__name__ or "Std" in type(module).__name__ for module in network.modules())


def _keep_size(layer: Any, inputs: Any, output: Tensor) -> Tensor:
    """Scales a layer so that what it answers differs between images by 1 on average."""
    axes = (0, *range(2, output.dim())) if isinstance(layer, nn.Conv2d) else tuple(range(output.dim() - 1))
    factor = 1 / output.var(axes).mean().sqrt().clamp(min=1e-6)
    for parameter in layer.parameters():
        parameter.mul_(factor)
    return output * factor
