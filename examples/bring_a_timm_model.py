"""From a trained timm model and a folder of photos to a proven bundle, without training.

    python bring_a_timm_model.py timm/mobilenetv3_small_100 weights.safetensors photos --image-size 224

``photos`` has a folder per class, named like it. A few hundred pictures calibrate the network; the labels only serve to
measure accuracy (``--unlabelled`` where they are not those of the network). What comes out is a folder for the device.
"""

from __future__ import annotations

import argparse

import emqdeploy


def main() -> None:
    """Quantizes, exports, verifies and measures, and prints a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="timm/NAME")
    parser.add_argument("weights", help=".safetensors or .pth, as timm or your own training saved them")
    parser.add_argument("photos", help="a folder with a folder per class")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=512, help="how many pictures calibrate")
    parser.add_argument("--unlabelled", action="store_true", help="the folders are not the network's classes")
    parser.add_argument("--out", default=None, help="runs/DATA-MODEL-NNN by default")
    given = parser.parse_args()
    made = emqdeploy.quantize(
        given.weights,
        model=given.model,
        data=f"imagefolder:{given.photos}",
        bits=[4, 8],
        images=given.images,
        image_size=given.image_size,
        unlabelled=given.unlabelled,
        out=given.out,
        report=print,
    )
    print(made)
    # As few bits as lose nothing that matters; 8 where even 7 do.
    usable = [child for child in made.usable if child.isdecimal()] or ["8"]
    written = emqdeploy.export(made.checkpoint, bits=sorted({usable[0], "8"}))
    print(written)
    found = emqdeploy.verify(written.bundle, images=32)
    print(found)
    if not found:
        raise SystemExit(f"do not deploy it: {found.wrong}")
    print(emqdeploy.bench(written.bundle, samples=50, scenario="single", energy="none"))
    print(f"copy {written.bundle} to the device, and see camera_loop.py")


if __name__ == "__main__":
    main()
