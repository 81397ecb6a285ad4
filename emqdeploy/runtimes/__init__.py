"""Running on this machine: adapters that switch precision, measuring; works without torch."""

from emqdeploy.format.child import Child
from emqdeploy.format.precision import LayerPrecision
from emqdeploy.runtimes.base import Runtime, open_runtime

__all__ = ["Child", "LayerPrecision", "Runtime", "open_runtime"]
