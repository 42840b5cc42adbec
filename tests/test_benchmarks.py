"""The benchmarks: real rows of ../shared/data, and for each entry one row written by hand in the hub's layout (there is no hub here)."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brite_lib import run
from brite_lib.benchmarks import BENCHMARKS, last_box, published_split
from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT, EvalParams, PsiParams, load_experiment
from brite_lib.problems import load as load_module
from brite_lib.problems import load_problems
from brite_lib.stages import plan
from brite_lib.stats import minimum_detectable_difference

DATA = PROJECT_ROOT.parent / "shared" / "data"

# The sizes that ../shared/data/DATA.md states.
SIZES = {
    ("gsm8k", "train"): 7473,
    ("gsm8k", "test"): 1319,
    ("math", "train"): 7500,
    ("math", "test"): 5000,
    ("math500", "test"): 500,
    ("minerva_math", "test"): 172,
    ("olympiadbench", "test"): 575,
    ("svamp", "test"): 1000,
    ("multiarith", "test"): 600,
    ("mawps", "test"): 2065,
    ("gaokao2023en", "test"): 321,
    ("aqua", "test"): 254,
    ("mmlu_stem", "test"): 3018,
    ("arc_challenge", "dev"): 299,
    ("arc_challenge", "test"): 1172,
    ("arc_easy", "dev"): 570,
    ("arc_easy", "test"): 2376,
    ("commonsenseqa", "train"): 9741,
    ("commonsenseqa", "dev"): 1221,
    ("humaneval", "test"): 164,
    ("humaneval_plus", "test"): 164,
    ("mbpp", "train"): 474,
    ("mbpp", "test"): 500,
    ("mbpp_plus", "test"): 378,
}
ODD_SIZES = {("minerva_math", "test"), ("olympiadbench", "test"), ("mbpp", "train")}  # not the published ones

# One row per entry in the hub's columns, and what must come of it.
HUB_ROWS = {
    "gsm8k": ({"question": "2 packs of 3?", "answer": "2*3=<<2*3=6>>6\n#### 6"}, {"answer": "6", "rationale": "2*3=6"}),
    "math": (
        {"problem": "What is $1+1$?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{\\frac{4}{2}}$."},
        {"question": "What is $1+1$?", "answer": "\\frac{4}{2}", "level": "Level 1", "id": "math/test/0"},
    ),
    "math500": (
        {"problem": "p", "solution": "\\boxed{2}", "answer": "2", "subject": "Algebra", "level": 3, "unique_id": "test/algebra/1.json"},
        {"question": "p", "answer": "2", "level": "Level 3", "id": "test/algebra/1.json"},
    ),
    "minerva_math": ({"question": "How far?", "answer": "4e33"}, {"answer": "4e33"}),
    "olympiadbench": (
        {
            "id": 1606,
            "question": "Find $a, b$.",
            "solution": ["Like this.", "Or that."],
            "final_answer": ["1", "$\\frac{1}{2}$"],
            "context": "Let $a<b$.",
            "is_multiple_answer": True,
        },
        {"id": "1606", "question": "Let $a<b$.\nFind $a, b$.", "answer": "1, $\\frac{1}{2}$", "rationale": "Like this."},
    ),
    "aime24": ({"id": 60, "problem": "p", "solution": "s", "answer": "204", "url": "u", "year": "2024"}, {"id": "60", "answer": "204"}),
    "amc23": ({"id": 0, "question": "q", "answer": 27.0, "url": "u"}, {"answer": "27"}),
    "svamp": (
        {"ID": "chal-1", "Body": "There are 3.", "Question": "How many?", "Equation": "3", "Answer": "3.0", "Type": "Addition"},
        {"id": "chal-1", "question": "There are 3. How many?", "answer": "3.0"},
    ),
    "gpqa_diamond": (
        {
            "Question": "Which?",
            "Correct Answer": "right\n",
            "Incorrect Answer 1": "wrong 1",
            "Incorrect Answer 2": "wrong 2",
            "Incorrect Answer 3": "wrong 3",
            "Explanation": "so",
            "Record ID": "rec1",
        },
        {"id": "rec1", "rationale": "so"},
    ),
    "arc_challenge": (
        {"id": "a1", "question": "Which?", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "2"},
        {"id": "a1", "question": "Which?\nA. x\nB. y\nC. z", "answer": "B", "choices": ["x", "y", "z"]},
    ),
    "commonsenseqa": (
        {
            "id": "c1",
            "question": "Where?",
            "question_concept": "door",
            "choices": {"label": ["A", "B", "C", "D", "E"], "text": ["a", "b", "c", "d", "e"]},
            "answerKey": "E",
        },
        {"id": "c1", "question": "Where?\nA. a\nB. b\nC. c\nD. d\nE. e", "answer": "E"},
    ),
    "mmlu_stem": (
        {"question": "Which?", "subject": "astronomy", "choices": ["w", "x", "y", "z"], "answer": 3},
        {"question": "Which?\nA. w\nB. x\nC. y\nD. z", "answer": "D"},
    ),
    "humaneval": (
        {
            "task_id": "HumanEval/0",
            "prompt": "def one():\n",
            "canonical_solution": "    return 1\n",
            "test": "def check(candidate):\n    assert candidate() == 1\n",
            "entry_point": "one",
        },
        {"id": "HumanEval/0", "question": "def one():\n", "answer": "def one():\n    return 1\n"},
    ),
    "mbpp": (
        {
            "task_id": 11,
            "text": "Write one.",
            "code": "def one():\n    return ONE",
            "test_list": ["assert one() == 1", "assert one() < 2"],
            "test_setup_code": "ONE = 1",
            "challenge_test_list": [],
        },
        {
            "id": "11",
            "question": "Write one.\nYour code should pass these tests:\nONE = 1\nassert one() == 1\nassert one() < 2",
            "tests": "ONE = 1\nassert one() == 1\nassert one() < 2",
        },
    ),
    "opc_educational": (
        {
            "seq_id": 5,
            "instruction": "Write one.",
            "output": "```python\ndef one():\n    return 1\n```",
            "code": "def one():\n    return 1",
            "entry_point": "one",
            "testcase": ["assert one() == 1", "assert one() < 2"],
        },
        {"id": "5", "question": "Write one.", "answer": "def one():\n    return 1", "tests": "assert one() == 1\nassert one() < 2"},
    ),
    "mbpp_plus": (
        {
            "task_id": 2,
            "code": "def one():\n    return 1",
            "prompt": "Write one.",
            "source_file": "f",
            "test_imports": ["import math"],
            "test_list": ["assert one() == 1", "assert one() < 2"],
            "test": "for _ in range(int(math.pi)):\n    assert one() == 1\n",
        },
        {"id": "2", "question": "Write one.\nYour code should pass these tests:\nassert one() == 1"},
    ),
    "bigcodebench": (
        {
            "task_id": "BigCodeBench/0",
            "complete_prompt": "import math\ndef task_func():\n    '''one'''\n",
            "instruct_prompt": "Return one. Start with:\n```\nimport math\ndef task_func():\n```",
            "canonical_solution": "    return 1\n",
            "code_prompt": "import math\ndef task_func():\n",
            "test": "import unittest\nclass TestCases(unittest.TestCase):\n"
            "    def test_one(self):\n        self.assertEqual(task_func(), 1)\n",
            "entry_point": "task_func",
            "libs": "['math']",
        },
        {"id": "BigCodeBench/0", "answer": "import math\ndef task_func():\n    return 1\n"},
    ),
}
HUB_ROWS["humaneval_plus"] = HUB_ROWS["humaneval"]
HUB_ROWS["bigcodebench_hard"] = HUB_ROWS["bigcodebench"]


@pytest.mark.parametrize(("name", "split"), SIZES)
def test_every_benchmark_at_hand_has_its_size(name, split, capsys):
    problems = load_problems(str(DATA / name), split)
    assert len(problems) == SIZES[name, split]
    assert ("are published" in capsys.readouterr().out) == ((name, split) in ODD_SIZES)
    kind = EvalParams(data=str(DATA / name)).answer_kind
    for row in problems.select(range(50)):
        if kind == "choice":
            assert len(row["choices"]) > "ABCDE".index(row["answer"]) and all(option in row["question"] for option in row["choices"])
        if kind == "code":
            assert row["tests"] and "assert" in (row["question"] if name.startswith("mbpp") else row["tests"])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_in_the_hubs_layout(name, tmp_path, monkeypatch):
    row, expected = HUB_ROWS[name]
    benchmark = BENCHMARKS[name]
    asked = []

    def load_dataset(repository, configuration, split):
        asked.append((repository, configuration, split))
        return [row]

    monkeypatch.setattr(load_module, "load_dataset", load_dataset)
    problems = load_problems(name, next(reversed(benchmark.splits)), limit=1)
    assert {key: problems[0][key] for key in expected} == expected
    hub_split = benchmark.splits[next(reversed(benchmark.splits))][0]
    assert asked == [(benchmark.repository, configuration, hub_split) for configuration in benchmark.configurations]

    (tmp_path / name).mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / name / "test.parquet")
    from_path = load_problems(str(tmp_path / name), "test", limit=1)
    assert {key: from_path[0][key] for key in expected if key != "id"} == {key: value for key, value in expected.items() if key != "id"}
    assert EvalParams(data=str(tmp_path / name)).answer_kind == benchmark.answer_kind


def write(folder, name, *rows):
    (folder / name).mkdir()
    (folder / name / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def test_a_downloaded_copy_of_the_hubs_repository(tmp_path, monkeypatch):
    """Its files are where the hub has them; the README says which are whose."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "arc_challenge"
    for configuration, rows in (("ARC-Easy", 1), ("ARC-Challenge", 2)):
        (folder / configuration).mkdir(parents=True)
        table = pa.Table.from_pylist([HUB_ROWS["arc_challenge"][0] | {"id": f"{configuration}/{i}"} for i in range(rows)])
        pq.write_table(table, folder / configuration / "validation-00000-of-00001.parquet")
    configurations = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: validation\n    path: {name}/validation-*\n"
        for name in ("ARC-Easy", "ARC-Challenge")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configurations}---\n# ARC\n")
    assert list(load_problems(str(folder), "dev")["id"]) == ["ARC-Challenge/0", "ARC-Challenge/1"]
    with pytest.raises(InputError, match=r"arc_challenge \(test\): is no whole copy of the hub's repository \("):
        load_problems(str(folder), "test")
    with pytest.raises(InputError, match="has no split 'trian'; known: train, validation, test"):
        load_problems(str(folder), "trian")
    (folder / "test.jsonl").write_text(json.dumps({"question": "q", "answer": "A"}))
    assert load_problems(str(folder), "test")["question"][0] == "q"  # a file of this project's goes first


def test_gpqa_options_are_shuffled_alike_in_every_run(tmp_path):
    row = HUB_ROWS["gpqa_diamond"][0]
    rows = [row | {"Question": f"Which {i}?", "Record ID": f"rec{i}"} for i in range(80)]
    problems = load_problems(write(tmp_path, "gpqa_diamond", *rows), "test")
    for problem in problems:
        assert problem["choices"]["ABCD".index(problem["answer"])] == "right"
        assert problem["question"].endswith("".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", problem["choices"], strict=True)))
    places = [list(problems["answer"]).count(letter) for letter in "ABCD"]
    assert min(places) >= 10  # each place has about 20
    (tmp_path / "again").mkdir()
    backwards = load_problems(write(tmp_path / "again", "gpqa_diamond", *reversed(rows)), "test")
    assert {row["id"]: row["question"] for row in backwards} == {row["id"]: row["question"] for row in problems}


def test_unittest_cases_of_bigcodebench_raise_too(tmp_path):
    problem = load_problems(write(tmp_path, "bigcodebench", HUB_ROWS["bigcodebench"][0]), "test")[0]
    exec(f"{problem['answer']}\n{problem['tests']}", {})
    for wrong in ("def task_func():\n    return 2", "def task_func():\n    raise SystemError", ""):
        with pytest.raises(AssertionError, match="TestCases"):
            exec(f"{wrong}\n{problem['tests']}", {})
    with pytest.raises(AssertionError):
        exec(f"{problem['answer']}\n{problem['tests'].replace('def test_one', 'def one')}", {})  # no test at all is no success


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_answer_of_a_math_solution_is_its_last_box(split):
    rows = load_problems(str(DATA / "math"), split)
    odd = [row["id"] for row in rows if last_box(row["rationale"]) != row["answer"]]
    assert odd == (["math/train/number_theory/7115", "math/train/number_theory/7117"] if split == "train" else [])  # empty boxes


@pytest.mark.parametrize(
    ("text", "box"),
    [("\\boxed{1} or \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"), ("$\\boxed 2$.", "2"), ("\\boxed{}", ""), ("\\boxed{1", None), ("1", None)],
)
def test_last_box(text, box):
    assert last_box(text) == box


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        ("math500", {"problem": "p", "answer": "2"}, "row 1: solution: is missing; this benchmark has problem, solution, or question and"),
        ("arc_challenge", {"question": "q", "choices": {"text": ["x"], "label": ["A"]}}, "row 1: answerKey: is missing"),
        ("gsm8k", {"question": "q", "answer": None}, "row 1: answer: is missing"),
        ("humaneval", {"task_id": "t", "prompt": "p", "canonical_solution": "c", "entry_point": "e"}, "row 1: test: is missing"),
        (
            "commonsenseqa",
            {"question": "q", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": ""},
            "row 1: question, choices, answerKey: one of them does not hold",
        ),
        ("mmlu_stem", {"question": "q", "choices": ["x"], "answer": 4}, "row 1: question, choices, answer: one of them does not hold"),
        ("olympiadbench", {"question": "q", "final_answer": 3}, "row 1: question, final_answer: one of them does not hold"),
        ("math", {"problem": "p", "solution": ""}, "row 1: answer: is missing"),
    ],
)
def test_a_row_that_does_not_fit_is_named(name, row, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence) as caught:
        load_problems(write(tmp_path, name, row), "test")
    assert "\n" not in str(caught.value)


def test_splits_that_a_benchmark_does_not_have(monkeypatch):
    monkeypatch.setattr(load_module, "load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(InputError, match=r"commonsenseqa: has no split 'test'; known: train, validation; .* have no answers"):
        load_problems("commonsenseqa", "test")
    with pytest.raises(InputError, match="math500: has no split 'train'; known: test"):
        load_problems("math500", "train")


def test_a_gated_benchmark_says_what_to_do(monkeypatch):
    from datasets.exceptions import DatasetNotFoundError

    def refuse(*_, **__):
        raise DatasetNotFoundError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub.\nYou must be authenticated.")

    monkeypatch.setattr(load_module, "load_dataset", refuse)
    words = r"Idavidrein/gpqa \(train\).*it is gated: accept its terms at https://huggingface.co/.*/gpqa, .*HF_TOKEN.*local path"
    with pytest.raises(InputError, match=words) as caught:
        load_problems("gpqa_diamond", "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "samples", "new_tokens", "kinds"),
    [
        ("eval-table1", {"gsm8k": 0, "math": 0}, 2048, {"number", "math"}),
        ("eval-table2", dict.fromkeys(("humaneval", "humaneval_plus", "bigcodebench_hard", "bigcodebench"), 0), 1280, {"code"}),
        (
            "eval-table3",
            {"math500": 8, "minerva_math": 8, "olympiadbench": 8, "aime24": 64, "amc23": 64, "gpqa_diamond": 8},
            4096,
            {"math", "choice"},
        ),
        ("eval-latro", {"gsm8k": 8, "arc_challenge": 8}, 532, {"number", "choice"}),
    ],
)
def test_the_protocols_of_the_papers(name, samples, new_tokens, kinds, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it asks for the model's sizes six times
    path = PROJECT_ROOT / "params" / f"{name}.yaml"
    stages = {spec.params.benchmark: spec.params for spec in plan(load_experiment(path))}
    assert {benchmark: params.samples for benchmark, params in stages.items()} == samples
    assert {params.answer_kind for params in stages.values()} == kinds
    for benchmark, params in stages.items():
        assert params.greedy == (name != "eval-table3")
        assert params.answer_from == "completion"
        assert params.max_rationale_tokens + params.max_answer_tokens == new_tokens
        assert published_split(params.data, params.split), benchmark
    assert run.main([str(path), "--plan"]) == 0
    assert "stages marked ?" not in capsys.readouterr().out  # the published sizes are known


def test_the_hub_is_asked_before_the_first_stage(tmp_path, monkeypatch, capsys):
    def load_dataset(*_, **__):
        raise ConnectionError("no login")

    monkeypatch.setattr(load_module, "load_dataset", load_dataset)
    path = tmp_path / "x.yaml"
    path.write_text("{name: test-hub, methods: [sft], tasks: [{name: g, data: 'toy:easy', test_data: gpqa_diamond}]}")
    assert run.main([str(path)]) == 2
    assert "it is gated" in capsys.readouterr().err
    assert not (PROJECT_ROOT / "outputs/test-hub").exists()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ("toy:easy", "exact"),
        ("gsm8k", "number"),
        ("openai/gsm8k", "number"),
        ("math500", "math"),
        ("/somewhere/else/math500", "math"),
        ("HuggingFaceH4/MATH-500", "math"),
        ("arc_challenge", "choice"),
        ("/somewhere/arc_challenge/", "choice"),
        ("humaneval", "code"),
        ("/somewhere/mine.jsonl", "math"),
        ("org/name", "math"),
        ("somebody/gsm8k", "math"),  # another data set than openai's
    ],
)
def test_the_answer_kind_fits_the_data(data, kind):
    assert EvalParams(data=data).answer_kind == kind
    assert PsiParams(data=data, answer_kind="exact").answer_kind == "exact"


def test_the_documentation_has_the_same_table():
    text = (PROJECT_ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    lines = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `") and "params/" not in line}
    assert list(lines) == list(BENCHMARKS)
    for name, entry in BENCHMARKS.items():
        assert f"| {entry.repository}," in lines[name] or f"| {entry.repository} |" in lines[name]
        assert f"| {entry.answer_kind} |" in lines[name] and ("**gated**" in lines[name]) == entry.gated
        for split, (hub_split, rows) in entry.splits.items():
            assert f"{split} {rows:,}" in lines[name] and (hub_split == split or f"`{hub_split}`" in lines[name])
    sizes, points = (
        [cell.split(" (")[0].strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith(("| problems", "| points"))
    )
    for size, point in zip(sizes, points, strict=True):
        assert f"{100 * minimum_detectable_difference(int(size.replace(',', ''))):.1f}" == point
