"""Theory of BRiTE, checked: EM as mirror ascent in an RKHS (Theorem 3.3) and the posterior as a soft-optimal policy (Proposition 3.7)."""

from brite_lib.theory.em import EMTrace, log_marginal, m_step, posterior, run_em
from brite_lib.theory.model import Model

__all__ = ["EMTrace", "Model", "log_marginal", "m_step", "posterior", "run_em"]
