"""The stage of Any-Precision that gives children norms which training never visited."""

from __future__ import annotations

import torch

from emqdeploy.data import load_dataset
from emqdeploy.format.child import Child
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.training.batches import image_source
from emqdeploy.training.calibration import calibrate
from emqdeploy.training.settings import CommonOptions

TWO, FOUR, EIGHT = (Child(str(bits), bits, 8) for bits in (2, 4, 8))


def test_calibration_trains_the_norms_of_unseen_children_only() -> None:
    """Any-Precision's stage: rows of the given children move, everything else stays to the bit."""
    torch.manual_seed(0)
    spec = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (TWO, EIGHT), (FOUR,), InsertionConfig(norm="private"))
    network = spec.build()
    network.initialise_clips(torch.randn(32, 1, 8, 8))
    dataset = load_dataset("digits", limit=80)
    source = image_source(dataset.train, dataset.preprocessing, "none", torch.device("cpu"))
    common = CommonOptions(batch_size=20)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    assert calibrate(network, source, (FOUR,), epochs=2, learning_rate=0.1, common=common) == 160
    for name, parameter in network.named_parameters():
        moved = (parameter.detach() != before[name]).reshape(len(parameter), -1).any(1).tolist()
        # The last row is 4 bits: it started from another child's row and was trained.
        assert moved == [False, False, True] if ".child_" in name else not any(moved), name
    assert all(parameter.requires_grad for parameter in network.layers["conv1"].parameters())
    norm = next(iter(network.norms.values()))
    assert not torch.equal(norm.statistics(FOUR)[0], norm.running_mean)
