"""Importance of training images; a score is one module, which registers it."""

from emqdeploy.registry import load_package
from emqdeploy.training.scores.base import SCORES, Importance, MeanScore, Said, Score, Size

__all__ = ["SCORES", "Importance", "MeanScore", "Said", "Score", "Size"]

load_package(__name__)
