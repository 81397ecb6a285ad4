"""A trained network of yours for a benchmark: where its weights and its images lie, as options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from emqdeploy.data import Dataset, load_dataset
from emqdeploy.format.child import Child
from emqdeploy.options import names
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.fidelity import build_both
from emqdeploy.training.pretrained import load_pretrained


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a trained network and its images."""
    parser.add_argument("--weights", type=Path, required=True, help="of the float network")
    parser.add_argument("--model", required=True, help="as emqdeploy quantize takes it")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--mean", help="of every channel, instead of the data set's: 0.485,0.456,0.406")
    parser.add_argument("--std", help="likewise")


def images_of(options: argparse.Namespace) -> Dataset:
    """The data set, its pictures normalised as the options say."""
    dataset = load_dataset(options.data, options.data_dir, limit=1000 if options.quick else None)
    given = {key: tuple(map(float, names(value))) for key in ("mean", "std") if (value := getattr(options, key))}
    return replace(dataset, preprocessing=replace(dataset.preprocessing, **given))


def networks_of(
    options: argparse.Namespace, dataset: Dataset, children: Sequence[Child]
) -> tuple[nn.Module, MultiBitNetwork]:
    """The float network with its weights, and a multi-bit network of a copy of it, both in evaluation mode."""
    pre = dataset.preprocessing
    shape = (pre.channels, pre.height, pre.width)
    spec = NetworkSpec(options.model, len(dataset.classes), shape, pre.input_range, tuple(children))
    load = partial(load_pretrained, path=options.weights, fresh_head=False)
    model, network = build_both(spec, load, users_code=True)
    return model.eval(), network.eval()


def public_name(model: str) -> str:
    """What a report calls a model: of your own function, its name alone."""
    return model.partition(":")[2] or model
