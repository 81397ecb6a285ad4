"""Let a policy choose the bit-width: the most accurate child that stays within a latency budget.

    python policy.py bundle --budget "latency_p99=20ms,accuracy>=90" --seconds 3

Runs on a device, with a bundle alone. Prints what the policy decided and why.
"""

from __future__ import annotations

import argparse
import time

import emqdeploy
from emqdeploy.runtimes.policy import Governed


def main() -> None:
    """Classifies test images until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--budget", default="latency_p99=20ms")
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    pictures = emqdeploy.sample_images(given.bundle)
    runtime = emqdeploy.load(given.bundle, "all")
    network = Governed(runtime, given.budget, accuracy=runtime.card.accuracy)
    inputs = runtime.preprocessing.normalize(pictures.images[:64])
    end, count, right = time.perf_counter() + given.seconds, 0, 0
    while time.perf_counter() < end:
        place = count % len(inputs)
        right += int(network(inputs[place : place + 1]).argmax()) == pictures.labels[place]
        count += 1
    print(f"{count} images, {100 * right / count:.1f} % right, at the end with {network.setting}")
    log = network.policy.log
    for entry in log:
        print(f"{entry.at_s - log[0].at_s:8.2f} s  {entry.reason}")


if __name__ == "__main__":
    main()
