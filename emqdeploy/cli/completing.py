"""Names that the shell completes; looked up when the shell asks, in the registries that the commands look in."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

NAMES = {
    "recipe": "emqdeploy.training.recipes:recipe_names",
    "method": "emqdeploy.training.methods:METHODS",
    "quantizer": "emqdeploy.quant.families.base:load_families",
    "model": "emqdeploy.models:MODELS",
    "data": "emqdeploy.data.loading:DATASETS",
    "target": "emqdeploy.workflows.handlers:TARGETS",
    "runtime": "emqdeploy.runtimes.base:RUNTIMES",
    "storage": "emqdeploy.exporters.storage:STORAGES",
    "selector": "emqdeploy.exporters.selector:SELECTORS",
}
"""Of which option the values are in which registry, or come from which function."""

FILLED_BY = {"target": "emqdeploy.workflows.targets", "runtime": "emqdeploy.runtimes.adapters"}
"""The package whose modules fill a registry, where that is another one."""


def completion(flag: str) -> Callable[[str], list[str]] | None:
    """What completes an option's value; None where its values have no names.

    Args:
        flag: without dashes.
    """
    if flag not in NAMES:
        return None

    def complete(incomplete: str) -> list[str]:
        from emqdeploy.registry import load_package

        module, _, name = NAMES[flag].partition(":")
        try:
            if flag in FILLED_BY:
                load_package(FILLED_BY[flag])
            found = getattr(importlib.import_module(module), name)
        except ImportError:  # that part is not installed here
            return []
        known: Iterable[str] = found() if callable(found) else found
        return [entry for entry in known if entry.startswith(incomplete)]

    return complete
