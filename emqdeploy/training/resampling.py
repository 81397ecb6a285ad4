"""Bringing the record of training dynamics up to date before coresets are chosen anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.registry import Registry
from emqdeploy.training.batches import ImageSource
from emqdeploy.training.dynamics import Dynamics, FeatureTap

PROBE_BATCH = 256


class Recorded(Protocol):
    """What resampling needs of a trainer."""

    network: MultiBitNetwork
    train: ImageSource
    dynamics: Dynamics | None
    features: FeatureTap | None


RESAMPLINGS: Registry[Callable[[Recorded], int]] = Registry("resampling")
"""``trainer -> images that went forward``; changes the trainer's record."""


@RESAMPLINGS.register("record")
def keep_record(trainer: Recorded) -> int:
    """Goes by what training recorded of the images that it visited; costs nothing, images out of the coreset age."""
    return 0


@RESAMPLINGS.register("probe")
@torch.no_grad()
def probe(trainer: Recorded) -> int:
    """A forward-only pass of every bit-width over all images."""
    dynamics, network = trainer.dynamics, trainer.network
    assert dynamics is not None
    network.eval()
    dynamics.open_epoch()
    everything = np.arange(len(trainer.train))
    forwards = 0
    for bits in network.trained_bits:
        network.set_bits(bits)
        for start in range(0, len(everything), PROBE_BATCH):
            indices = everything[start : start + PROBE_BATCH]
            logits = network(trainer.train.plain(indices))
            dynamics.record(bits, indices, logits, None if trainer.features is None else trainer.features.latest)
            forwards += len(indices)
    return forwards
