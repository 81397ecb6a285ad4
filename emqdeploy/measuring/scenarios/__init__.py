"""Scenarios by name; importing this package registers ours."""

from emqdeploy.measuring.scenarios import adaptive, offline, single, switch
from emqdeploy.measuring.workbench import SCENARIOS

__all__ = ["SCENARIOS", "adaptive", "offline", "single", "switch"]
