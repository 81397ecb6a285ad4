"""What learning the weights again without labels is worth for a trained network of yours.

``--weights`` of ``--model`` are quantized to all eight widths, rounded and reconstructed in turn, from calibration
images of several seeds. Accuracy and agreement with the float network are those of the deployed networks (integer
weights and biases); agreement and signal to noise are measured on 256 test images, as `emqdeploy quantize` does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.brought import add_options, images_of, networks_of, public_name
from benchmarks.common import arguments, by_width, earlier, show, write
from emqdeploy.format.child import FLOAT, WEIGHT_BITS, Child, in_order
from emqdeploy.graph.fidelity import FLOAT_MODEL
from emqdeploy.quant.deploy import deployed_reference
from emqdeploy.training.batches import image_source
from emqdeploy.training.evaluate import accuracies
from emqdeploy.training.fidelity import measure_fidelity
from emqdeploy.training.posttraining.answering import varied
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.quantize import calibrate, calibration_batches

WAYS = ("none", "blocks")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "reconstruction")
    add_options(parser)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--images", type=int, default=512, help="that calibrate")
    parser.add_argument("--steps", type=int, default=QuantizeConfig.reconstruction_steps)
    options = parser.parse_args(argv)
    dataset = images_of(options)
    test = image_source(dataset.test, dataset.preprocessing, "none", torch.device("cpu"))
    children = in_order(Child.of(bits) for bits in WEIGHT_BITS)
    settings = {"model": public_name(options.model), "data": options.data, "images": options.images}
    settings |= {"steps": options.steps, "test_images": len(dataset.test)}
    rows = earlier(options.json, settings) if options.resume else []
    for seed in options.seeds[: 1 if options.quick else None]:
        batches = calibration_batches(dataset, options.images, seed)
        known = {row["way"] for row in rows if row["seed"] == seed}
        for way in [way for way in WAYS if way not in known]:
            model, network = networks_of(options, dataset, children)
            config = QuantizeConfig(
                options.weights, options.model, options.data, reconstruction=way, reconstruction_steps=options.steps
            )
            started = time.perf_counter()
            frozen = calibrate(network, batches, config, print, varied(dataset.augmentation))
            seconds = time.perf_counter() - started
            deployed = {child: deployed_reference(network, frozen, child) for child in children}
            fidelity = measure_fidelity(dict.fromkeys(children, model), deployed, test, FLOAT_MODEL)
            rows.append(
                {
                    "way": way,
                    "seed": seed,
                    "seconds": round(seconds, 1),
                    "accuracy": by_width(accuracies({**deployed, FLOAT: model}, test)),
                    "fidelity": {child.name: found.to_dict() for child, found in fidelity.items()},
                }
            )
            write(options.json, "reconstruction", options.quick, rows, **settings)
    table = []
    for way in WAYS:
        runs = [row for row in rows if row["way"] == way]
        means = [np.mean([run["accuracy"][str(bits)] for run in runs]) for bits in (*WEIGHT_BITS, FLOAT.bits)]
        noise = [np.mean([run["fidelity"][child.name]["snr_db"] for run in runs]) for child in children]
        seconds = np.mean([run["seconds"] for run in runs])
        table.append((way, "accuracy, %", *(f"{mean:.2f}" for mean in means), f"{seconds:.0f} s"))
        table.append((way, "signal to noise, dB", *(f"{one:.1f}" for one in noise), "", ""))
    columns = ("weights", "", *(child.name for child in children), "float", "time")
    show(f"{options.model} on {options.data}, {len(rows) // len(WAYS)} seeds of calibration", columns, table)


if __name__ == "__main__":
    main()
