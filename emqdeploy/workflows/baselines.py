"""What an exported network is compared with: its float weights, and onnxruntime's own int8 quantization of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emqdeploy.data import Dataset, Preprocessing
from emqdeploy.errors import EmqError, require
from emqdeploy.exporters.products import Job, Product
from emqdeploy.format.bundle import BASELINE, INPUT
from emqdeploy.format.card import POST_TRAINING, Card
from emqdeploy.format.child import FLOAT_BITS, MASTER_BITS
from emqdeploy.format.grid import Floats
from emqdeploy.format.precision import FLOAT32, INT8, LayerPrecision
from emqdeploy.format.tasks import CLASSIFICATION, TASKS
from emqdeploy.runtimes.onnx_kernels import computed_as, profile_kernels
from emqdeploy.runtimes.onnx_session import create_session, session_options
from emqdeploy.runtimes.source import dataset_of, images_of
from emqdeploy.workflows.comparing import BATCH, Prover
from emqdeploy.workflows.handlers import Proven

if TYPE_CHECKING:
    import torch

LATENT_FILE = "latent.safetensors"
STATIC_INT8 = "static-int8"

STATISTICS_IMAGES = 512
"""Training images over which the float network's normalizations are measured anew."""

CALIBRATION_IMAGES = 128
"""Training images that onnxruntime's quantization observes."""


def baseline_products(job: Job, run: Path) -> Iterator[Product]:
    """Writes both baselines of a run.

    Args:
        job: the export.
        run: the directory of the checkpoint, where training left the float weights.

    Raises:
        EmqError: the float weights are not there, or the data set that calibration needs is not at hand.
    """
    job.report("exporting the float network")
    card = job.checkpoint.card
    dataset = images_of(card, job.settings.data_dir)
    preprocessing = Preprocessing.of(card.preprocessing)
    images = preprocessing.normalize(dataset.train.images[:STATISTICS_IMAGES])
    data = float_onnx(card, run / LATENT_FILE, images)
    yield _product(FLOAT32, job.stage("baseline-float32.onnx", data))
    job.report("quantizing it with onnxruntime's own static quantization")
    images = images[:CALIBRATION_IMAGES]
    target = job.staging / "baseline-static-int8.onnx"
    # The staged file has entered the bundle by now.
    static_quantization(job.stage("float-source.onnx", data), target, images)
    yield _product(STATIC_INT8, target)


def check_float_model(run: Path, card: Card) -> None:
    """Raises where a run has no float weights to make baselines from, or nothing to build their network with."""
    if not (run / LATENT_FILE).is_file():
        raise EmqError(
            f"--with-baselines needs the float weights of the run, and there is no {run / LATENT_FILE}; export from the"
            " run directory or leave --with-baselines out"
        )
    require("torch", "train")
    from emqdeploy.models import check_trusted

    check_trusted(card.model)


def float_onnx(card: Card, weights: Path, images: Floats) -> bytes:
    """Exports the float network of a run to ONNX.

    Training leaves the statistics of the quantized networks in the normalizations; with the weights in float they would
    be wrong, so they are measured on training images. What `quantize` leaves is the user's own model.

    Args:
        card: what the checkpoint says about it.
        weights: the float weights that the run left.
        images: normalised training images.
    """
    require("torch", "train")
    import torch

    from emqdeploy.quant.build import NetworkSpec
    from emqdeploy.training.pretrained import QUANTIZER
    from emqdeploy.training.weights_file import read_states

    model = NetworkSpec.from_dict(card.structure).float_model()
    state = read_states(weights)[()]
    try:
        # What a run's quantizers learned is of no use to the float network.
        model.load_state_dict({name: tensor for name, tensor in state.items() if f".{QUANTIZER}." not in name})
    except RuntimeError as error:
        raise EmqError(f"{weights} does not fit {card.model}: {str(error).splitlines()[0]}") from error
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    norms = [] if card.method == POST_TRAINING else norms
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    with torch.no_grad():
        for start in range(0, len(images) if norms else 0, BATCH):
            model(torch.from_numpy(images[start : start + BATCH]))
    return export_float(model, card.input_shape)


def export_float(model: torch.nn.Module, input_shape: tuple[int, int, int]) -> bytes:
    """A float network as ONNX, for any number of images; inputs and outputs named as in every file of ours."""
    import torch

    from emqdeploy.quant.marked_graph import quiet_export

    example = torch.zeros(2, *input_shape)
    with quiet_export():
        program = torch.onnx.export(
            model.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[CLASSIFICATION.output],
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
            self.rest = iter([{INPUT: images[index : index + 1]} for index in range(len(images))])

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
    return Product(f"onnx-{flavour}", (), "onnx", flavour, path, path.name, {}, role=BASELINE)


def measure_baseline(prover: Prover, product: Product) -> Proven:
    """A baseline is another network, so its accuracy is measured instead of its parity."""
    card = prover.checkpoint.card
    kernels = profile_kernels(product.path, session_options(), None, card.input_shape)
    stored = (FLOAT_BITS, FLOAT32) if product.flavour == FLOAT32 else (MASTER_BITS, INT8)
    names = sorted(kernels, key=_order)
    layers = tuple(LayerPrecision(name, *stored, *computed_as(kernels[name])) for name in names)
    described: dict[str, Any] = {"reference": None, "accuracy": None}
    try:
        dataset = dataset_of(card, prover.data_dir)
        described |= {"accuracy": _accuracy(card, product.path, dataset), "images": len(dataset.test)}
    except EmqError as error:
        described["why"] = str(error)
    return Proven(layers, described, {})


def _accuracy(card: Card, path: Path, dataset: Dataset) -> float:
    session, task = create_session(path, session_options()), TASKS[card.task]
    preprocessing = Preprocessing.of(card.preprocessing)
    right = 0
    for start in range(0, len(dataset.test), BATCH):
        images = preprocessing.normalize(dataset.test.images[start : start + BATCH])
        output = session.run([task.output], {INPUT: images})[0]
        right += task.correct(output, dataset.test.labels[start : start + BATCH])
    return round(100 * right / len(dataset.test), 4)


def _order(name: str) -> tuple[Any, ...]:
    """Sorts ``conv_2`` before ``conv_10``."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))
