"""Running on this machine: adapters that switch precision, measuring; works without torch."""

from emqdeploy.runtimes.base import LayerPrecision, Runtime, open_runtime

__all__ = ["LayerPrecision", "Runtime", "open_runtime"]
