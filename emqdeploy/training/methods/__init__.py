"""Training methods; a method is one module, which registers it."""

from emqdeploy.registry import load_package
from emqdeploy.training.methods.base import METHODS, Method, MethodOptions, NetworkPlan, Setting, method_options

__all__ = ["METHODS", "Method", "MethodOptions", "NetworkPlan", "Setting", "method_options"]

load_package(__name__)
