"""Importance of training images; a score is one module, which registers it."""

from emqdeploy.registry import load_package
from emqdeploy.training.scores.base import SCORES, Importance, Score, score

__all__ = ["SCORES", "Importance", "Score", "score"]

load_package(__name__)
