"""Scenarios by name; a new one is one new module here."""

from emqdeploy.measuring.workbench import SCENARIOS
from emqdeploy.registry import load_package

__all__ = ["SCENARIOS"]

load_package(__name__)
