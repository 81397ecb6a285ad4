"""Budgets in, the setting to run out: choosing the bit-width, and what else can be set, while a network runs."""

from emqdeploy.runtimes.policy.budgets import Budget, Goals, parse_policy
from emqdeploy.runtimes.policy.core import Decision, Policy, Tuning
from emqdeploy.runtimes.policy.governed import Governed
from emqdeploy.runtimes.policy.options import Option, Setting, table_options
from emqdeploy.runtimes.policy.window import Measurement

__all__ = [
    "Budget",
    "Decision",
    "Goals",
    "Governed",
    "Measurement",
    "Option",
    "Policy",
    "Setting",
    "Tuning",
    "parse_policy",
    "table_options",
]
