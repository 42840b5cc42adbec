"""Typed parameters: one pydantic model per stage, and the experiment file that fills them.

Nothing here imports torch: a wrong parameter must fail in a second, before a model is loaded. The field
descriptions are the reference documentation of the settings; ``params/*.yaml`` and the first cell of every
notebook use the same names. Symbols: ψ is the posterior Q(z|x), θ the language model (paper.md section 1).
"""

from brite_lib.params.base import PROJECT_ROOT, Strict, is_path, is_toy, resolve_path, suggestion
from brite_lib.params.dpo import DpoParams
from brite_lib.params.drr import DrrParams
from brite_lib.params.experiment import METHODS, STUDENT_METHODS, Experiment, TaskParams, load_experiment, method_order
from brite_lib.params.latro import SPECIAL_CASES, LatroParams, SpecialCase
from brite_lib.params.sources_and_learners import PsiParams, RejectionParams, ThetaParams
from brite_lib.params.stage import (
    EngineStageParams,
    EvalParams,
    HarnessParams,
    LimitsParams,
    LoraParams,
    ModelStageParams,
    ReportParams,
    SamplingStageParams,
    StageParams,
    TheoryParams,
    TinyBaseParams,
    check_engine,
)
from brite_lib.params.training import TrainingStageParams

__all__ = [
    "METHODS",
    "PROJECT_ROOT",
    "SPECIAL_CASES",
    "STUDENT_METHODS",
    "DpoParams",
    "DrrParams",
    "EngineStageParams",
    "EvalParams",
    "Experiment",
    "HarnessParams",
    "LatroParams",
    "LimitsParams",
    "LoraParams",
    "ModelStageParams",
    "PsiParams",
    "RejectionParams",
    "ReportParams",
    "SamplingStageParams",
    "SpecialCase",
    "StageParams",
    "Strict",
    "TaskParams",
    "TheoryParams",
    "ThetaParams",
    "TinyBaseParams",
    "TrainingStageParams",
    "check_engine",
    "is_path",
    "is_toy",
    "load_experiment",
    "method_order",
    "resolve_path",
    "suggestion",
]
