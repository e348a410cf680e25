"""Likelihoods: what a network's outputs mean, one family per file.

`likelihood` is the interface with its defaults; `table` names the families.
"""

from kobai.problem.likelihoods.bernoulli import Bernoulli
from kobai.problem.likelihoods.categorical import Categorical
from kobai.problem.likelihoods.gaussian import Gaussian
from kobai.problem.likelihoods.likelihood import Likelihood, TargetKind
from kobai.problem.likelihoods.recovery import RecoveredTargets, Rounding
from kobai.problem.likelihoods.table import as_likelihood, register_likelihood

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "RecoveredTargets",
    "Rounding",
    "TargetKind",
    "as_likelihood",
    "register_likelihood",
]
