"""engine: vllm with vLLM itself, on CPU (`make test-vllm`): the same function as Hugging Face's, and nothing left behind.

`tests/test_vllm_engine.py` has what needs no vLLM.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter

import psutil
import pytest
import torch

from brite_lib.errors import InputError
from brite_lib.execute import execute
from brite_lib.models import load_policy, load_template, save_policy
from brite_lib.params import PROJECT_ROOT, LoraParams
from brite_lib.problems import load_problems
from brite_lib.rollouts import add_scores, generate, open_sampler, sample, sample_seed
from brite_lib.tables import read_pairs, read_predictions, read_rationales
from brite_lib.vllm_engine import VllmEngine

BASE = PROJECT_ROOT / "assets/tiny-base"
TEMPLATE = load_template(BASE)
PROBLEMS = load_problems("toy:easy", "train", 25).to_list()
MAX_NEW = 40


@pytest.fixture(scope="module")
def theta():
    return load_policy(BASE)


@pytest.fixture(scope="module")
def engine():
    with open_sampler(BASE, "vllm") as running:
        yield running


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "brite_lib.vllm_worker" in " ".join(child.cmdline())]


def drawn(sampler, problems=PROBLEMS, n=4, temperature=1.0, seed=0):
    return generate(sampler, problems, TEMPLATE, n, temperature, MAX_NEW, seed=seed, max_rationale_tokens=32, max_answer_tokens=8).to_list()


def completions(rows):
    return [(row["rationale_ids"], row["answer_ids"], row["num_tokens"], row["finished"], row["correct"]) for row in rows]


def with_adapter(seed: int = 0):
    """θ with an adapter that changes what it says."""
    torch.manual_seed(seed)
    policy = load_policy(BASE, lora=LoraParams(r=4, alpha=8))
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.15)
    return policy


def largest_difference(rows, model) -> float:
    """Between vLLM's log-probabilities of z and likelihood.score's."""
    scored = add_scores(rows, TEMPLATE, model)
    assert all(len(row["logp_psi"]) == len(row["logp_theta"]) == len(row["rationale_ids"]) > 0 for row in scored)
    return max(abs(a - b) for row in scored for a, b in zip(row["logp_psi"], row["logp_theta"], strict=True))


def test_greedy_tokens_are_those_of_hugging_face(engine, theta):
    assert completions(drawn(engine, n=1, temperature=0.0)) == completions(drawn(theta, n=1, temperature=0.0))


def test_log_probabilities_of_samples_are_those_of_likelihood_score(engine, theta):
    rows = drawn(engine, n=8)
    assert largest_difference(rows, theta) < 1e-3
    assert len({tuple(row["rationale_ids"]) for row in rows}) > len(PROBLEMS)
    assert largest_difference(drawn(engine, n=2, temperature=0.6), theta) < 1e-3  # of the model, whatever the temperature was


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_models_law(engine, theta, temperature):
    """Frequencies of the first two tokens, against a softmax; chi-squared below five standard deviations."""
    prompt, n = TEMPLATE.prompt_ids(PROBLEMS[0]["question"]), 3000
    seeds = [sample_seed(1, k) for k in range(n)]
    counts = Counter(map(tuple, engine.sample([prompt] * n, seeds, TEMPLATE.stop_ids, temperature, 2).ids))

    def next_log_probs(ids):
        with torch.no_grad():
            return (theta(input_ids=torch.tensor([ids])).logits[0, -1] / temperature).log_softmax(-1)

    first = next_log_probs(prompt)
    law = {}
    for a in (first.exp() * n > 1).nonzero().flatten().tolist():
        if a in TEMPLATE.stop_ids:
            law[(a,)] = first[a].exp().item()
            continue
        for b, value in enumerate((first[a] + next_log_probs([*prompt, a])).exp().tolist()):
            law[a, b] = value
    frequent = {ids: p for ids, p in law.items() if p * n >= 5}
    rest = n * (1 - sum(frequent.values()))
    others = n - sum(counts[ids] for ids in frequent)
    chi_squared = sum((counts[ids] - n * p) ** 2 / (n * p) for ids, p in frequent.items()) + (others - rest) ** 2 / rest
    assert len(frequent) > 3
    assert chi_squared < len(frequent) + 5 * (2 * len(frequent)) ** 0.5


def test_a_sample_depends_on_its_seed_and_not_on_what_runs_beside_it(engine):
    rows = drawn(engine)
    assert completions(drawn(engine)) == completions(rows)
    assert completions(drawn(engine, PROBLEMS[7:9])) == completions(rows)[28:36]
    assert completions(drawn(engine, seed=1)) != completions(rows)


def test_the_boundary_ends_a_sample_as_it_does_with_hugging_face(engine, theta):
    prompts = [TEMPLATE.prompt_ids(problem["question"]) for problem in PROBLEMS]
    options = (prompts, range(len(prompts)), 0.0, 32, True)
    ended = sample(engine, TEMPLATE, *options)
    assert ended == sample(theta, TEMPLATE, *options)
    assert all(TEMPLATE.split(ids).finished for ids in ended)
    cut = engine.sample(prompts, range(len(prompts)), TEMPLATE.stop_ids, 1.0, 2)
    assert [len(ids) for ids in cut.ids] == [len(values) for values in cut.log_probs] == [2] * len(prompts)


def test_a_completion_that_may_not_fit_the_model_is_refused(engine):
    assert engine.max_length == 128
    with pytest.raises(InputError, match="a prompt of 100 tokens and 29 new ones are more than the 128"):
        engine.sample([[5] * 100], [0], TEMPLATE.stop_ids, 0.0, 29)


def test_an_adapter_runs_unmerged_and_is_the_merged_model(engine, tmp_path):
    policy = with_adapter()
    rows = drawn(policy, n=2, temperature=0.0)
    policy.save_pretrained(tmp_path / "adapter")
    with open_sampler(tmp_path / "adapter", "vllm") as adapted:
        found = drawn(adapted, n=2, temperature=0.0)
        sampled = drawn(adapted)
    assert completions(found) == completions(rows)
    assert completions(found) != completions(drawn(engine, n=2, temperature=0.0))
    assert largest_difference(sampled, policy) < 1e-3
    merged = save_policy(policy, TEMPLATE, tmp_path / "merged")
    assert completions(generate_with_vllm(merged, temperature=0.0)) == completions(found)


def generate_with_vllm(model, temperature=1.0):
    options = {"max_rationale_tokens": 32, "max_answer_tokens": 8}
    return generate(model, PROBLEMS, TEMPLATE, 2, temperature, MAX_NEW, engine="vllm", **options).to_list()


@pytest.mark.parametrize("lora", [True, False])
def test_a_module_in_memory_is_sampled_as_it_is(lora):
    """As it was trained, not as it lies on disk; with LoRA the adapter alone is copied, for the base is there already."""
    policy = with_adapter(1)
    model = policy if lora else policy.merge_and_unload()
    rows = generate_with_vllm(model)
    assert largest_difference(rows, model) < 1e-3
    assert largest_difference(rows, load_policy(BASE)) > 0.1


def after_training(policy, seed):
    """Other weights wherever the policy is trained."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return policy


@pytest.mark.parametrize("lora", [True, False])
def test_a_running_engine_takes_other_weights(lora, tmp_path):
    """The head and the embedding, which are tied, and what was computed before (prefixes) included. Sleep frees nothing on a CPU,
    but goes the way it would go on a GPU: weights first, then the cache."""
    policy = with_adapter(2) if lora else load_policy(BASE)
    with open_sampler(policy, "vllm") as running:
        for seed in range(3):
            before = drawn(running, temperature=0.0)
            after_training(policy, seed).save_pretrained(tmp_path / str(seed))
            assert largest_difference(drawn(running, n=2), policy) > 0.05  # it has yet to be told
            if seed:
                running.sleep()
            running.load(tmp_path / str(seed))
            assert largest_difference(drawn(running), policy) < 1e-3
            found = drawn(running, temperature=0.0)
            assert completions(found) == completions(drawn(policy, temperature=0.0))
            assert completions(found) != completions(before)


def test_two_engines_share_the_prompts_and_keep_their_order(engine):
    with VllmEngine(BASE, devices=[None, None]) as pair:
        assert len(workers()) == 3  # with the one of the other tests
        assert completions(drawn(pair)) == completions(drawn(engine))
        assert drawn(pair, PROBLEMS[:1], n=1)[0]["rationale_ids"]


def test_an_engine_ends_with_its_block_and_another_one_starts(theta, tmp_path):
    before, sizes, here = len(workers()), [], psutil.Process()
    for seed in range(3):
        with open_sampler(BASE, "vllm", directory=tmp_path) as running:
            (worker,) = [process for process in workers() if process.pid == running._workers[0].process.pid]
            assert worker.memory_info().rss > 2**29
            rows = drawn(running, seed=seed)
        assert not worker.is_running()
        assert len(workers()) == before
        assert os.listdir(tmp_path) == ["vllm.log"]
        assert largest_difference(rows, theta) < 1e-3
        sizes.append(here.memory_info().rss)
    assert sizes[2] - sizes[0] < 50 * 2**20


def test_an_engine_that_dies_is_one_sentence(tmp_path):
    with open_sampler(BASE, "vllm", directory=tmp_path) as running:
        running._workers[0].process.kill()
        with pytest.raises(RuntimeError, match=rf"vllm could not sample: its process was killed by SIGKILL .*; see {tmp_path}/vllm.log"):
            drawn(running)


def test_an_engine_that_fails_says_why_and_its_log_has_the_traceback(tmp_path):
    with open_sampler(BASE, "vllm", directory=tmp_path) as running, pytest.raises(RuntimeError, match="vllm could not sample: .*Error"):
        running.sample([[10**6]], [0], TEMPLATE.stop_ids, 0.0, 2)
    assert "Traceback" in (tmp_path / "vllm.log").read_text()
    config = json.loads((BASE / "config.json").read_text()) | {"architectures": ["NoSuchModel"], "head_dim": 32}
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "model.safetensors").write_bytes((BASE / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="vllm could not start: .*NoSuchModel"), VllmEngine(broken, directory=tmp_path):
        pass


def test_an_engine_does_not_outlive_its_parent(tmp_path):
    code = f"""
import time
from brite_lib.rollouts import open_sampler
with open_sampler({str(BASE)!r}, "vllm") as running:
    print(running._workers[0].process.pid, flush=True)
    time.sleep(600)
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=PROJECT_ROOT, env=environment, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.wait(timeout=30)
    assert not worker.is_running()


SMALL = {"engine": "vllm", "limit": 6, "samples": 4}
STAGES = {
    "10_rejection_sampling": SMALL,
    "05_evaluation": SMALL | {"samples": 2, "bootstrap": 50},
    "04_dpo": SMALL | {"limit": 12, "epochs": 1, "samples": 6},
    "02_psi_ppo": SMALL
    | {"rollout_engine": "vllm", "samples": 1, "steps": 2, "prompts_per_step": 4, "lora": {"r": 4, "alpha": 8}, "learning_rate": 1e-2},
    "12_drr": SMALL | {"limit": 12, "test_limit": 4, "turns": 2, "chains": 2, "epochs": 1, "bootstrap": 50},
}


@pytest.mark.parametrize("notebook", STAGES)
def test_whole_stages(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("BRITE_BATCH", "1")
    values = {name: value for name, value in STAGES[notebook].items() if notebook != "12_drr" or name != "samples"}
    output = {"output_dir": str(tmp_path / "stage"), "threads": 1}
    error = execute(PROJECT_ROOT / "notebooks" / f"{notebook}.ipynb", tmp_path / "out.ipynb", values | output)
    assert error is None
    record = json.loads((tmp_path / "stage/stage.json").read_text())
    assert record["params"]["engine"] == "vllm"
    assert record["tokens_generated"] > 0
    assert not list((tmp_path / "stage").glob("vllm-*"))
    assert "Loading weights took" in (tmp_path / "stage/vllm.log").read_text()
    for file, read in {"rationales.parquet": read_rationales, "predictions.parquet": read_predictions, "pairs.parquet": read_pairs}.items():
        if (tmp_path / "stage" / file).is_file():
            assert read(tmp_path / "stage" / file)
    if notebook in ("10_rejection_sampling", "02_psi_ppo"):
        for row in read_rationales(tmp_path / "stage/rationales.parquet"):
            assert (row["logp_psi"] == pytest.approx(row["logp_theta"], abs=1e-3)) == (notebook == "10_rejection_sampling")
