"""What an exported network is compared with: its float weights, and onnxruntime's own int8 quantization of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emqdeploy.bundle import VERIFIED
from emqdeploy.data import Dataset, Preprocessing
from emqdeploy.errors import EmqError, require
from emqdeploy.export.targets import Job, Product
from emqdeploy.grid import Floats
from emqdeploy.runtimes.onnx_kernels import computed_as, profile_kernels
from emqdeploy.runtimes.onnx_session import create_session, session_options
from emqdeploy.runtimes.source import dataset_of
from emqdeploy.workflows.proof import PROVERS, Proven, Prover

if TYPE_CHECKING:
    import torch

LATENT_FILE = "latent.safetensors"
FLOAT, STATIC_INT8 = "float32", "static-int8"

STATISTICS_IMAGES = 512
"""Training images over which the float network's normalizations are measured anew."""

CALIBRATION_IMAGES = 128
"""Training images that onnxruntime's quantization observes."""

_BATCH = 64


def baseline_products(job: Job, run: Path) -> Iterator[Product]:
    """Writes both baselines of a run.

    Args:
        job: the export.
        run: the directory of the checkpoint, where training left the float weights.

    Raises:
        EmqError: the float weights are not there, or the data set that calibration needs is not at hand.
    """
    job.report("exporting the float network")
    dataset = dataset_of(job.checkpoint.metadata, job.settings.data_dir)
    preprocessing = Preprocessing.from_dict(job.checkpoint.metadata["preprocessing"])
    images = preprocessing.normalize(dataset.train.images[:STATISTICS_IMAGES])
    data = float_onnx(job.checkpoint.metadata["network"], run / LATENT_FILE, images)
    yield _product(FLOAT, job.stage("baseline-float32.onnx", data))
    job.report("quantizing it with onnxruntime's own static quantization")
    images = images[:CALIBRATION_IMAGES]
    target = job.staging / "baseline-static-int8.onnx"
    # The staged file has entered the bundle by now.
    static_quantization(job.stage("float-source.onnx", data), target, images)
    yield _product(STATIC_INT8, target)


def float_onnx(network: dict[str, Any], weights: Path, images: Floats) -> bytes:
    """Exports the float network of a run to ONNX.

    Training leaves the statistics of the quantized networks in the normalizations; with the weights in float they would
    be wrong, so they are measured on training images.

    Args:
        network: the checkpoint's description of it.
        weights: the float weights that training wrote.
        images: normalised training images.
    """
    require("torch", "train")
    import safetensors.torch
    import torch

    from emqdeploy.models import create_model

    if not weights.is_file():
        raise EmqError(
            f"--with-baselines needs the float weights of the run, and there is no {weights}; export from the run"
            " directory or leave --with-baselines out"
        )
    channels, height, _ = network["input_shape"]
    model = create_model(network["model"], network["classes"], channels, height)
    try:
        model.load_state_dict(safetensors.torch.load_file(weights))
    except RuntimeError as error:
        raise EmqError(f"{weights} does not fit {network['model']}: {str(error).splitlines()[0]}") from error
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    with torch.no_grad():
        for start in range(0, len(images) if norms else 0, _BATCH):
            model(torch.from_numpy(images[start : start + _BATCH]))
    return export_float(model, tuple(network["input_shape"]))


def export_float(model: torch.nn.Module, input_shape: tuple[int, int, int]) -> bytes:
    """A float network as ONNX, for any number of images; inputs and outputs named as in every file of ours."""
    import torch

    from emqdeploy.quant.skeleton import quiet_export

    example = torch.zeros(2, *input_shape)
    with quiet_export():
        program = torch.onnx.export(
            model.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data


def static_quantization(source: Path, target: Path, images: Floats) -> None:
    """Static post-training quantization as onnxruntime documents it: QDQ, per channel, uint8 activations."""
    quantization: Any = require("onnxruntime.quantization", "export")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        """Hands out one image at a time."""

        def __init__(self) -> None:
            self.rest = iter([{"images": images[index : index + 1]} for index in range(len(images))])

        def get_next(self) -> dict[str, Floats] | None:
            return next(self.rest, None)

    prepared = source.with_name("prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )


def _product(flavour: str, path: Path) -> Product:
    return Product(f"onnx-{flavour}", (), "onnx", flavour, path, path.name, {}, role="baseline")


@PROVERS.register("baseline")
def measure_baseline(prover: Prover, product: Product) -> Proven:
    """A baseline is another network, so its accuracy is measured instead of its parity."""
    metadata = prover.checkpoint.metadata
    kernels = profile_kernels(product.path, session_options(), None, tuple(metadata["network"]["input_shape"]))
    grid_bits = 32 if product.flavour == FLOAT else 8
    stored = "float32" if product.flavour == FLOAT else "int8"
    layers = tuple(
        {"name": name, "grid_bits": grid_bits, "stored_as": stored, "computed_as": computed_as(kernel)}
        for name, kernel in sorted(kernels.items(), key=lambda entry: _order(entry[0]))
    )
    described: dict[str, Any] = {"reference": None, "accuracy": None}
    try:
        dataset = dataset_of(metadata, prover.data_dir)
        described |= {"accuracy": _accuracy(prover, product, dataset), "images": len(dataset.test)}
    except EmqError as error:
        described["why"] = str(error)
    return Proven(layers, described, {}, status=VERIFIED)


def _accuracy(prover: Prover, product: Product, dataset: Dataset) -> float:
    session = create_session(product.path, session_options())
    preprocessing = Preprocessing.from_dict(prover.checkpoint.metadata["preprocessing"])
    right = 0
    for start in range(0, len(dataset.test), _BATCH):
        images = preprocessing.normalize(dataset.test.images[start : start + _BATCH])
        logits = session.run(["logits"], {"images": images})[0]
        right += int(np.sum(logits.argmax(1) == dataset.test.labels[start : start + _BATCH]))
    return round(100 * right / len(dataset.test), 4)


def _order(name: str) -> tuple[Any, ...]:
    """Sorts ``conv_2`` before ``conv_10``."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))
