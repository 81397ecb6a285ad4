"""Which registry each field of a configuration names an entry of."""

from __future__ import annotations

from typing import Any

from emqdeploy.quant.norms import NORMS
from emqdeploy.registry import Registry
from emqdeploy.training.augment import AUGMENTATIONS
from emqdeploy.training.coreset import SELECTIONS, SHARINGS
from emqdeploy.training.norms import NORM_ADAPTATIONS
from emqdeploy.training.optimizers import OPTIMIZERS, SCHEDULES
from emqdeploy.training.resampling import RESAMPLINGS
from emqdeploy.training.scores import SCORES
from emqdeploy.training.steps import STEP_PLANS
from emqdeploy.training.targets import TARGETS


def by_field() -> dict[str, Registry[Any]]:
    """The registry of every field whose value is a name."""
    return {
        "augment": AUGMENTATIONS,
        "schedule": SCHEDULES,
        "optimizer": OPTIMIZERS,
        "step_plan": STEP_PLANS,
        "score_plan": STEP_PLANS,
        "distill": TARGETS,
        "score": SCORES,
        "selection": SELECTIONS,
        "sharing": SHARINGS,
        "resample_from": RESAMPLINGS,
        "norm": NORMS,
        "norm_adaptation": NORM_ADAPTATIONS,
    }
