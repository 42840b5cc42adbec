"""The names, parameters and their order that notebooks, documents and other people's code rely on: a change here is a change for them."""

import importlib
import inspect

import pytest

PARAMETERS = {
    "dpo.make_pairs": "rows seed",
    "dpo.rationale_dpo": "model pairs template params checkpoints log",
    "drr.collect_behaviour": "reasoner problems template params",
    "drr.reason_with_feedback": "reasoner discriminator problems template params",
    "drr.train_discriminator": "rows base template params checkpoints log",
    "em.elbo": "log_joint log_q",
    "em.marginal_log_likelihood": "log_joint log_q",
    "launch.launch": "stage params processes",
    "likelihood.score": "model prompt_ids rationale_ids answer_ids",
    "models.load_policy": "name_or_path adapter lora device dtype",
    "models.save_policy": "model template directory",
    "params.load_experiment": "path",
    "ppo.PosteriorPPOTrainer": "model template problems config",
    "ppo.gae": "rewards values mask gamma lam",
    "ppo.token_rewards": "log_prob reference_log_prob terminal mask kl_coef",
    "problems.load_problems": "source split limit seed",
    "records.Stage.finish": "self outputs metrics",
    "records.Stage.start": "name params",
    "rollouts.generate": "model_or_path problems template n temperature max_new_tokens engine seed",
    "sandbox.run_tests": "program tests timeout memory_mb",
    "sft.rationale_sft": "model dataset template params checkpoints log",
    "stats.bootstrap_ci": "per_problem_values level resamples seed",
    "stats.majority_at_k": "predictions correct k",
    "stats.paired_difference": "a b level",
    "stats.pass_at_k": "n c k",
    "theory.check_theorem": "trace theta_star features evidence weights ridge index",
    "theory.kernel_features": "points kernel rank length_scale method",
    "theory.log_marginal": "theta features evidence weights ridge",
    "theory.m_step": "q features weights theta0 ridge",
    "theory.posterior": "theta features evidence",
    "theory.run_em": "features evidence weights theta0 steps ridge",
    "theory.soft_policy": "log_prior log_evidence c",
    "verify.extract_answer": "text kind",
    "verify.is_correct": "prediction gold kind",
    "verify.verify_batch": "predictions golds kind workers timeout",
    "viewer.show": "table",
    "viewer.to_html": "table path",
}
CLASSES = {
    "params": "DpoParams DrrParams EvalParams Experiment LatroParams PsiParams RejectionParams TheoryParams ThetaParams",
    "ppo": "PosteriorPPOConfig",
    "problems": "Problem",
    "rewards": "AnswerLikelihood VerifierReward",
    "sandbox": "Verdict",
    "template": "RationaleTemplate",
    "theory": "EMTrace",
    "viewer": "RationaleViewer",
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_come_in_this_order_before_any_others(name):
    module, *path = name.split(".")
    function = importlib.import_module(f"brite_lib.{module}")
    for part in path:
        function = getattr(function, part)
    wanted = PARAMETERS[name].split()
    assert list(inspect.signature(function).parameters)[: len(wanted)] == wanted


def test_classes_are_where_they_are_looked_for():
    missing = [
        f"{module}.{name}"
        for module, names in CLASSES.items()
        for name in names.split()
        if not inspect.isclass(getattr(importlib.import_module(f"brite_lib.{module}"), name, None))
    ]
    assert missing == []
