"""The words of the report: what a method is, and what to look at in a figure."""

METHOD_NOTES = {
    "base": "θ before any training",
    "sft": "θ trained on the human rationales",
    "sft_careless": "θ trained on rationales of the careless annotator",
    "sft_careful": "θ trained on rationales of the careful annotator",
    "rs": "θ trained on one random correct rationale of N samples per problem",
    "posterior": "as rs, but sampled until every problem has a hit: a perfect E-step",
    "brite_psi": "Qψ itself, answering",
    "brite": "θ trained on rationales of Qψ",
    "raft": "θ trained on all different correct samples (RAFT, RFT)",
    "star": "as rs, and failed problems are tried again with the answer as a hint (STaR)",
    "rest_em": "θ trained on its samples, weighted by exp(R/β) (ReST-EM)",
    "iterative_dpo": "θ trained on pairs of a correct and an incorrect sample of its own, iteration by iteration",
    "brite_dpo": "as iterative_dpo, with the pairs from Qψ",
    "latro": "θ rewards its own rationales by its likelihood of y*, and learns y* (LaTRO)",
    "grpo": "θ trained on a verifier's rewards, standardised in groups (GRPO, RLVR)",
    "rloo": "θ trained on a verifier's rewards, leave-one-out baseline (RLOO)",
    "verifree": "θ trained on P(y*|x,z) itself (VeriFree)",
    "student": "another base model before any training",
    "distil_sft": "the student trained on the human rationales",
    "distil_rs": "the student trained on what rs learns from",
    "distil_brite": "the student trained on rationales of Qψ",
    "drr": "θ as it is, asked again while a discriminator rejects (DRR); more tokens per answer than the others",
}
FIGURE_NOTES = {  # by the beginning of the caption
    "Accuracy": "Bars whose intervals overlap may still differ, as the methods answer the same problems: Differences compares pairs.",
    "Heat map": "Along a row: is a method good everywhere, or on one benchmark only?",
    "ψ-update": "elbo is the objective and must rise: it is the reward (answer_log_prob: the likelihood of y*) less the kl paid for it. "
    "entropy falls, but not to 0. finished stays near 1. A reward that rises while right answers do not is the sign of hedging.",
    "θ-update": "Nats per learned token. A source that writes as θ does starts low and has little to teach token by token; "
    "what changes is how often θ writes so. Compare within a method, not between them.",
    "EM monitor": "Every update should raise log P(y*|x). The gap to the ELBO is the KL from Q to the posterior: an E-step closes it.",
    "Length": "How long each method thinks. A hump that vanishes is a habit that was unlearned.",
    "Perplexity": "How surprising the rationales are to θ before it learns. 1: θ would have written the very same.",
    "Share of each style": "Who derives, who skips, who guesses: known on the toy task only. No method was told which style is good.",
}
