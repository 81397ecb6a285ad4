"""Bringing the record of training dynamics up to date before coresets are chosen anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.registry import Registry
from emqdeploy.training.batches import ImageSource
from emqdeploy.training.dynamics import Dynamics, FeatureTap

PROBE_BATCH = 256

Resampling = Callable[[MultiBitNetwork, ImageSource, Dynamics, FeatureTap | None], None]
"""``(network, all training images, record, where features are read)``; changes the record."""

RESAMPLINGS: Registry[Resampling] = Registry("resampling")


@RESAMPLINGS.register("record")
def keep_record(network: MultiBitNetwork, source: ImageSource, dynamics: Dynamics, features: FeatureTap | None) -> None:
    """Goes by what training recorded of the images that it visited; costs nothing, images out of the coreset age."""


@RESAMPLINGS.register("probe")
@torch.no_grad()
def probe(network: MultiBitNetwork, source: ImageSource, dynamics: Dynamics, features: FeatureTap | None) -> None:
    """A forward-only pass of every trained child over all images."""
    network.eval()
    dynamics.open_epoch()
    everything = np.arange(len(source))
    for child in network.trained:
        network.use(child)
        for start in range(0, len(everything), PROBE_BATCH):
            indices = everything[start : start + PROBE_BATCH]
            logits = network(source.plain(indices))
            dynamics.record(child, indices, logits, None if features is None else features.latest)
