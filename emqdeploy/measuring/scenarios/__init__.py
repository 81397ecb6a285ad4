"""Scenarios by name; importing this package registers ours."""

from emqdeploy.measuring.scenarios import offline, single, switch
from emqdeploy.measuring.workbench import SCENARIOS

__all__ = ["SCENARIOS", "offline", "single", "switch"]
