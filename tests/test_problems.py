import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT
from brite_lib.problems import LEVELS, Problem, has_split, load_problems, style_of
from brite_lib.problems import load as load_module

DATA = PROJECT_ROOT.parent / "shared" / "data"
GOOD = [{"id": "a", "question": "1+2?", "answer": "3", "rationale": "count", "unit": "cm"}, {"id": "b", "question": "1+1?", "answer": "2"}]


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("level", LEVELS)
def test_toy_is_deterministic_and_its_splits_are_disjoint(level):
    questions = {split: load_problems(f"toy:{level}", split, limit=200)["question"] for split in ("train", "validation", "test")}
    assert list(questions["train"]) == list(load_problems(f"toy:{level}", "train", limit=200, seed=3)["question"])
    everything = [question for split in questions.values() for question in split]
    assert len(set(everything)) == 600


def test_toy_annotators_see_the_same_problems():
    careful = load_problems("toy:easy:careful", "train", limit=100)
    careless = load_problems("toy:easy", "train", limit=100)
    assert list(careful["question"]) == list(careless["question"])
    assert {style_of(row["question"], row["rationale"]) for row in careful} == {"careful"}
    assert {style_of(row["question"], row["rationale"]) for row in careless} == {"careful", "skipping"}


def test_toy_has_a_thousand_problems_by_default_and_is_easy():
    assert len(load_problems("toy:easy", "train")) == 1000
    assert load_problems("toy", "test", limit=3).to_list() == load_problems("toy:easy", "test", limit=3).to_list()


@pytest.mark.parametrize(
    ("source", "split", "words"),
    [
        ("toy:esay", "train", "did you mean 'easy'"),
        ("toy:easy:carefull", "train", "did you mean 'careful'"),
        ("toy:easy", "dev", "validation"),
        ("gsm8kk", "train", "did you mean 'gsm8k'"),
        ("./nowhere.jsonl", "train", "no such data file"),
        ("nowhere.jsonl.gz", "train", "no such data file"),
    ],
)
def test_unknown_source(source, split, words):
    with pytest.raises(InputError, match=words):
        load_problems(source, split)


def test_gsm8k_rows():
    problems = load_problems(str(DATA / "gsm8k"), "test")
    assert problems.column_names == list(Problem.model_fields)
    assert len(problems) == 1319
    first = problems[0]
    assert (first["id"], first["answer"]) == ("gsm8k/test/0", "18")
    assert first["rationale"] == ("Janet sells 16 - 3 - 4 = 9 duck eggs a day.\nShe makes 9 * 2 = $18 every day at the farmer’s market.")
    assert not any("####" in text or "<<" in text for text in problems["rationale"])


@pytest.mark.parametrize("name", ["aqua", "math500", "svamp", "olympiadbench", "commonsenseqa"])
def test_shared_data_loads(name):
    problems = load_problems(str(DATA / name), "dev" if name == "commonsenseqa" else "test", limit=50)
    assert len(problems) == 50
    if name == "aqua":
        assert problems[0]["choices"][0] == "5(√3 + 1)"
    if name == "math500":
        assert problems[0]["level"] == "Level 2"


def test_a_problem_takes_its_columns_by_name_or_in_order():
    assert Problem("1", "2+2", "4", choices=["4"]) == Problem(id="1", question="2+2", answer="4", choices=["4"])
    with pytest.raises(TypeError, match="7 columns"):
        Problem(*"12345678")
    with pytest.raises(ValueError, match="answer"):
        Problem("1", "2+2", 4)


@pytest.mark.parametrize("source", ["toy:easy", str(DATA / "svamp")])
def test_a_limit_below_one_is_refused(source):
    for limit in (0, -1):
        with pytest.raises(InputError, match=f"limit: must be at least 1 .got {limit}"):
            load_problems(source, "test", limit)


def test_limit_is_the_head_and_with_a_seed_a_sample():
    whole = list(load_problems(str(DATA / "svamp"), "test")["id"])
    assert list(load_problems(str(DATA / "svamp"), "test", limit=20)["id"]) == whole[:20]
    sample = list(load_problems(str(DATA / "svamp"), "test", limit=20, seed=1)["id"])
    assert sample == list(load_problems(str(DATA / "svamp"), "test", limit=20, seed=1)["id"])
    assert sample != whole[:20] and set(sample) < set(whole)


def test_rows_without_id_and_raw_gsm8k_answers(tmp_path):
    rows = [{"question": "q", "answer": "3 * 400 = <<3*400=1200>>1200\n#### 1,200"}, {"question": "r", "answer": "4"}]
    problems = load_problems(str(write_lines(tmp_path / "mine.jsonl", rows)), "train")
    assert list(problems["id"]) == ["mine/0", "mine/1"]
    assert problems[0]["rationale"] == "3 * 400 = 1200"
    assert problems[0]["answer"] == "1200"
    (tmp_path / "set").mkdir()
    write_lines(tmp_path / "set" / "train.jsonl", rows)
    assert load_problems(str(tmp_path / "set"), "train")[1]["id"] == "set/train/1"
    with pytest.raises(InputError, match="no split 'trian'; did you mean 'train'"):
        load_problems(str(tmp_path / "set"), "trian")


def test_parquet_equals_jsonl(tmp_path):
    write_lines(tmp_path / "a.jsonl", GOOD)
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "a.parquet")
    assert load_problems(str(tmp_path / "a.jsonl"), "x").to_list() == load_problems(str(tmp_path / "a.parquet"), "x").to_list()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"id": "c", "question": "q"}, "row 3: answer: is missing"),
        ({"id": "c", "question": "q", "answer": None}, "row 3: answer: is missing"),
        ({"id": "c", "question": "q", "answer": "  "}, "row 3: answer: is empty"),
        ({"id": "c", "question": "", "answer": "1"}, "row 3: question: is empty"),
        ({"id": "a", "question": "q", "answer": "1"}, "row 3: id: 'a' is already in row 1"),
        ({"id": "c", "question": "q", "answer": 1}, "row 3: answer: must be a string, found 1; write it in quotes"),
        ({"id": "c", "question": "q", "answer": "1", "choices": "A"}, "row 3: choices: .*list"),
        ("[1]", "row 3: must be an object"),
        ('{"id": "c", "question"', "row 3: is no JSON object: Expecting ':' delimiter at column 23"),
    ],
)
def test_bad_row_is_named(tmp_path, bad, words):
    path = write_lines(tmp_path / "bad.jsonl", [*GOOD, bad])
    with pytest.raises(InputError, match=f"{path}: {words}") as caught:
        load_problems(str(path), "train")
    assert "\n" not in str(caught.value)


def test_broken_files_are_named(tmp_path):
    whole = gzip.compress("".join(json.dumps(row | {"id": str(i)}) + "\n" for i, row in enumerate(GOOD * 500)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-30])
    (tmp_path / "text.jsonl").write_bytes(b'{"question": "q", "answer": "1"}\n' * 500 + b'{"id": "\xff"}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    cases = {
        "cut.jsonl.gz": "breaks off after row",
        "cut.parquet": "parquet",
        "text.jsonl": "row 501: is not UTF-8",
        "empty.jsonl": "has no rows",
    }
    for name, words in cases.items():
        with pytest.raises(InputError, match=f"{name}: .*{words}|{name}: {words}"):
            load_problems(str(tmp_path / name), "train")


def test_hub_rows_and_an_unreachable_hub(monkeypatch):
    def load_dataset(repository, configuration, split):
        if repository != "openai/gsm8k":
            raise ConnectionError("Couldn't reach the Hub")
        assert configuration == "main"
        rows = {"test": [{"question": "q", "answer": "it is <<1+1=2>>2\n#### 2"}]}
        return rows[split] if split else rows

    monkeypatch.setattr(load_module, "load_dataset", load_dataset)
    row = load_problems("gsm8k", "test")[0]
    assert (row["id"], row["answer"], row["rationale"]) == ("gsm8k/test/0", "2", "it is 2")
    with pytest.raises(InputError, match=r"org/name \(test\): cannot be loaded from the hub .*give a local path"):
        load_problems("org/name", "test")
    assert has_split("gsm8k", "test") and not has_split("gsm8k", "validation")
    with pytest.raises(InputError, match=r"org/name \(its splits\): cannot be loaded from the hub"):
        has_split("org/name", "validation")


def test_which_splits_there_are(tmp_path):
    file = write_lines(tmp_path / "train.jsonl", GOOD)
    assert has_split("toy:easy", "validation") and not has_split("toy:easy", "dev")
    assert has_split(str(tmp_path), "train") and not has_split(str(tmp_path), "validation")
    assert not has_split(str(file), "train")
