"""The plan: every method's stages, their order, parameters and places."""

from pathlib import Path

import pytest

from brite_lib.errors import InputError
from brite_lib.params import METHODS, PROJECT_ROOT, STUDENT_METHODS, EvalParams, Experiment, ThetaParams, load_experiment
from brite_lib.stages import is_path, plan, run_directory


def make(**changes: object) -> Experiment:
    models = {"model": "org/model", "student": "org/student"}
    values = {"name": "x", **models, "tasks": [{"name": "toy", "data": "toy:easy"}], "methods": list(METHODS)}
    return Experiment.parse(values | changes)


def by_name(experiment: Experiment) -> dict:
    return {spec.key: spec for spec in plan(experiment)}


def test_every_method_of_one_task():
    stages = by_name(make(seeds=[3], dpo_iterations=1))
    evaluations = {f"seed3/eval_{method}" for method in METHODS if method != "drr"}
    learners = {f"seed3/{method}" for method in METHODS if method not in ("base", "student")}
    sources = {f"seed3/{method}_sampling" for method in ("rs", "posterior", "raft", "star", "rest_em")} | {"seed3/brite_dpo_psi_round1"}
    assert set(stages) == evaluations | learners | sources
    for spec in stages.values():
        assert spec.directory == PROJECT_ROOT / "outputs/x" / spec.key == PROJECT_ROOT / spec.params.output_dir
        assert spec.params.stage == spec.key.removeprefix("seed3/")
        assert spec.params.seed == 3


def test_each_stage_follows_the_stages_it_reads():
    seen: set[str] = set()
    for spec in plan(make(seeds=[0, 1])):
        assert set(spec.inputs) <= seen
        seen.add(spec.key)


@pytest.mark.parametrize(
    ("method", "rationales", "data", "reads"),
    [
        ("sft", "human", "toy:easy", ()),
        ("sft_careless", "human", "toy:easy:careless", ()),
        ("sft_careful", "human", "toy:easy:careful", ()),
        ("rs", "outputs/x/seed0/rs_sampling/rationales.parquet", "toy:easy", ("seed0/rs_sampling",)),
        ("posterior", "outputs/x/seed0/posterior_sampling/rationales.parquet", "toy:easy", ("seed0/posterior_sampling",)),
        ("brite", "outputs/x/seed0/brite_psi/rationales.parquet", "toy:easy", ("seed0/brite_psi",)),
    ],
)
def test_what_each_learner_learns(method, rationales, data, reads):
    spec = by_name(make())[f"seed0/{method}"]
    assert isinstance(spec.params, ThetaParams)
    assert (spec.params.rationales, spec.params.data, spec.inputs) == (rationales, data, reads)
    assert spec.params.model == "org/model"
    assert spec.notebook.name == "03_theta_sft.ipynb"


def test_what_each_evaluation_loads():
    stages = by_name(make(tasks=[{"name": "t", "data": "toy:easy", "test_data": "toy:hard", "test_split": "validation", "test_limit": 7}]))
    for method in (method for method in METHODS if method != "drr"):
        spec = stages[f"seed0/eval_{method}"]
        params = spec.params
        assert isinstance(params, EvalParams)
        untrained = {"base": "org/model", "student": "org/student"}
        scorer = "org/student" if method in STUDENT_METHODS else "org/model"
        assert params.model == untrained.get(method, f"outputs/x/seed0/{method}/model")
        assert spec.inputs == (() if method in untrained else (f"seed0/{method}",))
        assert (params.method, params.benchmark, params.reference_model) == (method, "t", scorer)
        assert (params.data, params.split, params.limit) == ("toy:hard", "validation", 7)


def test_rejection_and_posterior_sampling_differ_in_one_setting():
    stages = by_name(make(rejection={"samples": 5}))
    rs, posterior = stages["seed0/rs_sampling"].params, stages["seed0/posterior_sampling"].params
    assert (rs.until_hit, posterior.until_hit, rs.samples, posterior.samples) == (False, True, 5, 5)


def test_only_the_stages_that_methods_need():
    assert set(by_name(make(methods=["base"]))) == {"seed0/eval_base"}
    assert set(by_name(make(methods=["brite"]))) == {"seed0/brite_psi", "seed0/brite", "seed0/eval_brite"}
    assert set(by_name(make(methods=["brite_psi"]))) == {"seed0/brite_psi", "seed0/eval_brite_psi"}


def test_several_tasks_have_their_names_in_the_directories():
    tasks = [{"name": "toy-easy", "data": "toy:easy"}, {"name": "toy-hard", "data": "toy:hard"}]
    stages = by_name(make(tasks=tasks, methods=["rs"], seeds=[0, 1]))
    assert len(stages) == 12
    spec = stages["seed1/toy-hard.rs"]
    assert spec.inputs == ("seed1/toy-hard.rs_sampling",)
    assert spec.params.rationales == "outputs/x/seed1/toy-hard.rs_sampling/rationales.parquet"


def test_common_settings_reach_the_stages_that_know_them_and_sections_win():
    stages = by_name(make(common={"batch_size": 16, "steps": 3, "temperature": 0.5}, evaluation={"temperature": 0.7}))
    assert all(spec.params.batch_size == 16 for spec in stages.values())
    assert stages["seed0/brite_psi"].params.steps == 3
    assert stages["seed0/rs_sampling"].params.temperature == 0.5
    assert stages["seed0/eval_rs"].params.temperature == 0.7


def test_a_benchmark_may_have_its_own_settings_of_evaluation():
    tasks = [{"name": "aime24", "data": "aime24", "evaluation": {"samples": 64}}, {"name": "math500", "data": "math500"}]
    stages = by_name(make(tasks=tasks, methods=["base"], evaluation={"samples": 8, "greedy": False}))
    assert [spec.params.samples for spec in stages.values()] == [64, 8]
    assert not any(spec.params.greedy for spec in stages.values())
    for settings, words in (
        ({"sampels": 64}, "tasks: aime24: evaluation: sampels: .*did you mean 'samples'"),
        ({"split": "train"}, "tasks: aime24: evaluation: split: is decided by"),
        ({"samples": 0}, "tasks: aime24: evaluation: samples must be above 0, or greedy true"),
    ):
        with pytest.raises(InputError, match=words):
            plan(make(tasks=[tasks[0] | {"evaluation": settings}], methods=["base"], evaluation={"greedy": False}))


def test_an_exact_answer_is_not_looked_for_in_a_whole_text():
    assert plan(make(methods=["base"], evaluation={"answer_from": "completion"}, tasks=[{"name": "g", "data": "gsm8k"}]))
    with pytest.raises(InputError, match="answer_from: completion needs an answer_kind .* not exact"):
        plan(make(methods=["base"], evaluation={"answer_from": "completion"}))


def test_the_template_and_local_files_reach_every_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    for name in ("config.json", "model.safetensors"):
        Path("model", name).write_text("")
    Path("rows.jsonl").write_text("")
    experiment = make(model="model", template="chat", tasks=[{"name": "g", "data": "rows.jsonl"}], methods=["base", "sft"])
    for spec in plan(experiment):
        assert spec.params.template == "chat"
        assert spec.params.data == str(tmp_path / "rows.jsonl")  # absolute: a kernel has another working directory
        assert set(spec.sources) == {tmp_path / "model/config.json", tmp_path / "model/model.safetensors", tmp_path / "rows.jsonl"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", False),
        ("Qwen/Qwen2.5-0.5B", False),
        ("openai/gsm8k", False),
        ("./gpt2", True),
        ("../shared/data/gsm8k", True),
        ("/models/x", True),
        ("~/models/x", True),
        ("rows.jsonl", True),
        ("org/name/more", True),
        ("tests/no-such-model", True),  # tests/ is a directory here
        ("params", True),
    ],
)
def test_paths_and_hub_names(name, expected, monkeypatch):
    monkeypatch.chdir(PROJECT_ROOT)
    assert is_path(name) is expected


@pytest.mark.parametrize("path", sorted(PROJECT_ROOT.glob("params/*.yaml")), ids=lambda path: path.name)
def test_the_committed_experiments_are_valid(path):
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    assert run_directory(experiment) == PROJECT_ROOT / "outputs" / path.stem


def test_rounds_pass_the_model_on():
    stages = by_name(make(methods=["brite_psi", "brite"], rounds=3))
    model = "outputs/x/seed0/brite_round2/model"
    psi, theta = stages["seed0/brite_psi_round3"], stages["seed0/brite_round3"]
    assert (psi.params.model, psi.inputs, psi.params.round) == (model, ("seed0/brite_round2",), 3)
    assert theta.params.rationales == "outputs/x/seed0/brite_psi_round3/rationales.parquet"
    assert theta.params.model == model
    assert set(theta.inputs) == {"seed0/brite_psi_round3", "seed0/brite_round2"}
    rows = [spec.params.method for spec in stages.values() if isinstance(spec.params, EvalParams)]
    assert rows == ["brite_psi", "brite_psi_round2", "brite_psi_round3", "brite", "brite_round2", "brite_round3"]


def test_theta_may_restart_from_the_base_while_q_goes_on():
    stages = by_name(make(methods=["brite"], rounds=2, theta_from="base"))
    assert stages["seed0/brite_psi_round2"].params.model == "outputs/x/seed0/brite/model"
    assert stages["seed0/brite_round2"].params.model == "org/model"
    assert stages["seed0/brite_round2"].inputs == ("seed0/brite_psi_round2",)


def test_the_last_q_needs_no_further_theta():
    assert set(by_name(make(methods=["brite_psi"], rounds=2))) == {
        "seed0/brite_psi", "seed0/brite", "seed0/brite_psi_round2", "seed0/eval_brite_psi", "seed0/eval_brite_psi_round2",
    }  # fmt: skip


@pytest.mark.parametrize("rounds", [0, -1, 1.5])
def test_bad_rounds_are_one_sentence(rounds):
    with pytest.raises(InputError, match="rounds: "):
        make(rounds=rounds)


def test_each_iteration_of_dpo_goes_on_from_the_last():
    stages = by_name(make(methods=["brite_dpo"], dpo_iterations=2, dpo={"samples": 7}))
    first, second = stages["seed0/brite_dpo_round1"].params, stages["seed0/brite_dpo"].params
    assert (first.model, first.sampler, first.samples) == ("org/model", "outputs/x/seed0/brite_dpo_psi_round1/model", 7)
    assert (second.model, second.round) == ("outputs/x/seed0/brite_dpo_round1/model", 2)
    assert stages["seed0/brite_dpo_psi_round2"].params.model == second.model
    assert set(stages["seed0/brite_dpo"].inputs) == {"seed0/brite_dpo_round1", "seed0/brite_dpo_psi_round2"}
    assert by_name(make(methods=["iterative_dpo"]))["seed0/iterative_dpo"].params.sampler == ""


def test_special_cases_of_the_trainer_are_settings_that_the_file_may_change():
    stages = by_name(make(methods=["latro", "grpo", "rloo", "verifree"], grpo={"kl_coef": 0.1}))
    latro, grpo, rloo, verifree = (stages[f"seed0/{name}"].params for name in ("latro", "grpo", "rloo", "verifree"))
    assert (latro.scorer, latro.answer_nll_weight, latro.reward) == ("live", 1.0, "answer_likelihood")
    assert (grpo.scorer, grpo.reward, grpo.advantage, grpo.scale_group_std, grpo.kl_coef) == ("frozen", "verifier", "group", True, 0.1)
    assert (rloo.advantage, rloo.reward, rloo.answer_nll_weight) == ("rloo", "verifier", 0.0)
    assert (verifree.answer_signal, verifree.kl_coef, verifree.scorer) == ("prob", 0.0, "live")
    assert {stages[f"seed0/{name}"].notebook.name for name in ("latro", "grpo")} == {"11_latro.ipynb"}


def test_the_rejection_family_differs_in_its_strategy():
    stages = by_name(make(methods=["raft", "star", "rest_em"], rounds=2))
    assert {name: stages[f"seed0/{name}_sampling"].params.strategy for name in ("raft", "star", "rest_em")} == {
        "raft": "raft", "star": "star", "rest_em": "rest_em",
    }  # fmt: skip
    assert stages["seed0/star_round2"].params.model == "org/model"  # from the base each time, as in STaR
    assert stages["seed0/star_sampling_round2"].params.model == "outputs/x/seed0/star/model"
    assert stages["seed0/raft_round2"].params.model == "outputs/x/seed0/raft/model"
    assert stages["seed0/rest_em"].params.reward_weighted and not stages["seed0/raft"].params.reward_weighted


def test_drr_trains_and_answers_in_one_stage():
    stages = by_name(make(methods=["base", "drr"], drr={"turns": 3}))
    assert set(stages) == {"seed0/drr", "seed0/eval_base"}
    drr, evaluation = stages["seed0/drr"].params, stages["seed0/eval_base"].params
    assert (drr.method, drr.turns, drr.data, drr.split) == ("drr", 3, "toy:easy", "train")
    assert (drr.test_data, drr.test_split, drr.test_limit) == (evaluation.data, evaluation.split, evaluation.limit)
    with pytest.raises(InputError, match="drr: test_split: is decided by the experiment's tasks"):
        plan(make(methods=["drr"], drr={"test_split": "validation"}))


def test_a_task_may_evaluate_what_another_one_trains():
    tasks = [
        {"name": "a", "data": "toy:easy", "evaluation": {"samples": 2}},
        {"name": "b", "data": "toy:hard", "models_of": "a", "evaluation": {"samples": 6}},
    ]
    stages = by_name(make(tasks=tasks, methods=["base", "brite"], evaluation={"samples": 3}))
    evaluations = {"seed0/a.eval_base", "seed0/a.eval_brite", "seed0/b.eval_base", "seed0/b.eval_brite"}
    assert set(stages) == {"seed0/a.brite_psi", "seed0/a.brite"} | evaluations
    elsewhere = stages["seed0/b.eval_brite"]
    assert (elsewhere.params.model, elsewhere.inputs) == ("outputs/x/seed0/a.brite/model", ("seed0/a.brite",))
    assert (elsewhere.params.data, elsewhere.params.benchmark, elsewhere.params.samples) == ("toy:hard", "b", 6)
    with pytest.raises(InputError, match="tasks: b: models_of: 'c' trains nothing"):
        make(tasks=[tasks[0], tasks[1] | {"models_of": "c"}])
    with pytest.raises(InputError, match="tasks: b: models_of: 'b' trains nothing"):
        make(tasks=[tasks[0], tasks[1] | {"models_of": "b"}])
    with pytest.raises(InputError, match="method drr answers while it trains"):
        make(tasks=tasks, methods=["drr"])


def test_human_rationales_may_have_settings_of_their_own():
    stages = by_name(make(methods=["sft", "rs"], theta={"learning_rate": 1e-3, "epochs": 3}, sft={"learning_rate": 1e-4}))
    sft, rs = stages["seed0/sft"].params, stages["seed0/rs"].params
    assert (sft.learning_rate, rs.learning_rate, sft.epochs, rs.epochs) == (1e-4, 1e-3, 3, 3)
    with pytest.raises(InputError, match="sft: learning_rat: is no parameter of ThetaParams; did you mean 'learning_rate'"):
        plan(make(sft={"learning_rat": 1}))


def test_a_file_may_extend_another(tmp_path):
    (tmp_path / "base").mkdir()
    base = "tasks: [{name: toy, data: 'toy:easy'}]\nmethods: [base, brite]\npsi: {steps: 5, lora: {r: 4, alpha: 8}}\n"
    (tmp_path / "base/b.yaml").write_text(base)
    (tmp_path / "x.yaml").write_text("extends: base/b.yaml\nname: x\nmethods: [base]\npsi: {epochs: 2, lora: {r: 8}}\n")
    experiment = load_experiment(tmp_path / "x.yaml")
    assert experiment.methods == ["base"] and experiment.tasks[0].name == "toy"
    assert experiment.psi == {"steps": 5, "epochs": 2, "lora": {"r": 8, "alpha": 8}}


@pytest.mark.parametrize(
    ("extends", "sentence"),
    [
        ("base/c.yaml", "base/c.yaml: no such experiment file; did you mean 'b.yaml'"),
        ("x.yaml", "x.yaml: extends: x.yaml extends another file itself; one level is all there is"),
        ("[base/b.yaml]", "x.yaml: extends: must name one file"),
        ("base/bad.yaml", "base/bad.yaml: must be a mapping of settings, found list"),
    ],
)
def test_what_cannot_be_extended_is_one_sentence(tmp_path, extends, sentence):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/b.yaml").write_text("methods: [base]\n")
    (tmp_path / "base/bad.yaml").write_text("- 1\n")
    (tmp_path / "x.yaml").write_text(f"extends: {extends}\nname: x\n")
    with pytest.raises(InputError) as error:
        load_experiment(tmp_path / "x.yaml")
    assert sentence in str(error.value) and "\n" not in str(error.value)
