import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brite_lib.errors import InputError
from brite_lib.files import atomic_path, sha256_of
from brite_lib.tables import PREDICTIONS, RATIONALES, read_predictions, read_rationales, write_table

HUMAN = {
    "id": "a", "question": "1+1", "gold": "2", "rationale": "count", "finished": True, "source": "human", "round": 1, "sample": 0,
}  # fmt: skip
SAMPLED = HUMAN | {
    "answer_text": "2", "prediction": "2", "correct": True, "source": "brite_psi", "seed": 2**63 - 1, "num_tokens": 3, "prompt_ids": [1, 2],
    "rationale_ids": [3], "answer_ids": [4, 5], "tokens": ["z"], "logp_theta": [-0.5], "logp_psi": [-0.25], "logp_answer": -1.5,
    "reward": -1.5, "advantage": [0.5], "value": [0.0],
}  # fmt: skip
PREDICTED = {name: value for name, value in SAMPLED.items() if name in PREDICTIONS.names} | {"benchmark": "toy", "temperature": 0.0}


def test_columns_are_those_of_the_design():
    assert RATIONALES.names == [
        "id", "question", "gold", "rationale", "answer_text", "prediction", "correct", "finished", "source", "round", "sample", "seed",
        "num_tokens", "prompt_ids", "rationale_ids", "answer_ids", "tokens", "logp_theta", "logp_psi", "logp_answer", "reward", "advantage",
        "value",
    ]  # fmt: skip
    assert PREDICTIONS.names == [*RATIONALES.names[:13], "benchmark", "temperature", "logp_answer"]
    assert RATIONALES.field("prompt_ids").type == pa.list_(pa.int32())


def test_round_trip(tmp_path):
    write_table([SAMPLED, HUMAN], RATIONALES, tmp_path / "rationales.parquet")
    sampled, human = read_rationales(tmp_path / "rationales.parquet")
    assert sampled == SAMPLED
    assert human == dict.fromkeys(RATIONALES.names) | HUMAN
    write_table([PREDICTED], PREDICTIONS, tmp_path / "predictions.parquet")
    assert read_predictions(tmp_path / "predictions.parquet") == [PREDICTED]
    write_table([], RATIONALES, tmp_path / "empty.parquet")
    assert read_rationales(tmp_path / "empty.parquet") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"advantages": [1.0]}, "row 2: advantages: .*did you mean 'advantage'"),
        ({"gold": None}, "row 2: gold: is missing"),
        ({"correct": "yes"}, "row 2: correct: must be bool"),
        ({"rationale_ids": ["x"]}, "row 2: rationale_ids: must be list<"),
        ({"rationale_ids": [2**40]}, "row 2: rationale_ids: must be list<"),
    ],
)
def test_bad_row_writes_nothing(tmp_path, change, words):
    with pytest.raises(InputError, match=f"t.parquet: {words}"):
        write_table([SAMPLED, SAMPLED | change], RATIONALES, tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "rationales.parquet"
    with pytest.raises(InputError, match=r"rationales.parquet: no such file"):
        read_rationales(path)
    write_table([SAMPLED] * 100, RATIONALES, path)
    whole = path.read_bytes()
    for cut in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"rationales.parquet: is no whole parquet file"):
            read_rationales(path)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"t: prompt_ids: is no column"):
        read_predictions(path)
    table = pa.Table.from_pylist([SAMPLED], RATIONALES)
    pq.write_table(table.drop_columns(["gold"]), path)
    with pytest.raises(InputError, match="column gold is missing"):
        read_rationales(path)
    pq.write_table(table.set_column(5, "prediction", pa.array([[1]])), path)
    with pytest.raises(InputError, match="column prediction must be string"):
        read_rationales(path)
    rows = [SAMPLED, SAMPLED | {"gold": None}]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([field.with_nullable(True) for field in RATIONALES])), path)
    with pytest.raises(InputError, match="row 2: gold: is missing"):
        read_rationales(path)


def test_a_table_from_elsewhere_needs_no_nullable_columns(tmp_path):
    pd.DataFrame([HUMAN]).to_parquet(tmp_path / "mine.parquet")
    assert read_rationales(tmp_path / "mine.parquet") == [dict.fromkeys(RATIONALES.names) | HUMAN]


def test_json_lines_are_read_like_parquet(tmp_path):
    path = tmp_path / "rationales.jsonl"
    strange = SAMPLED | {"rationale": "a\u2028b\r\nc", "seed": 2**63 - 1}
    path.write_text(json.dumps(strange, ensure_ascii=False) + "\n\n" + json.dumps(HUMAN) + "\n", encoding="utf-8")
    assert read_rationales(path) == [strange, dict.fromkeys(RATIONALES.names) | HUMAN]
    for line, words in [
        ('{"id": "a"', "row 1: is no JSON object"),
        ("3", "row 1: is no"),
        ('{"id": "a"}', "row 1: question: is missing"),
    ]:
        path.write_text(line)
        with pytest.raises(InputError, match=f"rationales.jsonl: {words}"):
            read_rationales(path)


def test_pandas_written_tables_are_read(tmp_path):
    pa.Table.from_pylist([SAMPLED], RATIONALES).to_pandas().to_parquet(tmp_path / "t.parquet")
    assert read_rationales(tmp_path / "t.parquet")[0]["rationale_ids"] == [3]


def test_atomic_path_and_hash(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    for name in ("x", "y"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "f").write_text("content")
    assert sha256_of(tmp_path / "x") == sha256_of(tmp_path / "y")
    (tmp_path / "y" / "sub" / "f").rename(tmp_path / "y" / "sub" / "g")
    assert sha256_of(tmp_path / "x") != sha256_of(tmp_path / "y")
