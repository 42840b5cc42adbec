"""Theory of BRiTE, checked: EM as mirror ascent in an RKHS (Theorem 3.3) and the posterior as a soft-optimal policy (Proposition 3.7).

The contract's functions take plain arrays: ``features`` (X, S, d) with S numbering the pairs (z, y), ``evidence`` (X, S) =
P(o = 1|x, z, y) on the selected set, ``weights`` (X,). The parts: ``features`` (kernels), ``model`` (log-partitions and
divergences), ``em``, ``optimum`` (θ* and whether it exists), ``theorem`` (identities, bound, conditions), ``instances``,
``inexact`` (learned E-steps) and ``soft`` (Prop. 3.7).
"""

from brite_lib.theory.em import EMTrace, log_marginal, m_step, posterior, run_em
from brite_lib.theory.features import kernel_features
from brite_lib.theory.inexact import EStep, InexactTrace, run_inexact_em
from brite_lib.theory.instances import Instance, noisy_evidence, random_instance, soft_evidence, sufficient_ridge, verifier_evidence
from brite_lib.theory.model import Model
from brite_lib.theory.optimum import Optimum, best_of_starts, comparator, m_step_attained, missing_information, own_limit
from brite_lib.theory.soft import soft_policy
from brite_lib.theory.theorem import Budget, TheoremCheck, budget, check_theorem, identities

__all__ = [
    "Budget",
    "EMTrace",
    "EStep",
    "InexactTrace",
    "Instance",
    "Model",
    "Optimum",
    "TheoremCheck",
    "best_of_starts",
    "budget",
    "check_theorem",
    "comparator",
    "identities",
    "kernel_features",
    "log_marginal",
    "m_step",
    "m_step_attained",
    "missing_information",
    "noisy_evidence",
    "own_limit",
    "posterior",
    "random_instance",
    "run_em",
    "run_inexact_em",
    "soft_evidence",
    "soft_policy",
    "sufficient_ridge",
    "verifier_evidence",
]
