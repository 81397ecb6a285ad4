"""TruncQuant (arXiv 2506.11431): Any-Precision's training with codes that nest, so that one file serves all."""

from __future__ import annotations

from dataclasses import dataclass

from emqdeploy.training.methods.any_precision import AnyPrecision, AnyPrecisionOptions
from emqdeploy.training.methods.base import METHODS


@dataclass(frozen=True)
class TruncQuantOptions(AnyPrecisionOptions):
    """Those of Any-Precision."""

    name = "truncquant"


@METHODS.register("truncquant")
class TruncQuant(AnyPrecision):
    """The nested codes are the quantizer's default partition."""

    Options = TruncQuantOptions
