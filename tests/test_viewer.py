import gzip
import html
import json
import os
import random
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT
from brite_lib.tables import RATIONALES, write_table
from brite_lib.viewer import RationaleViewer, show, to_html
from brite_lib.viewer.annotations import read_annotations, write_annotations
from brite_lib.viewer.pack import pack, quantise
from brite_lib.viewer.page import HIDDEN, fragment, plain_text, script, static_table
from brite_lib.viewer.table import read_rows

ROW = {
    "id": "a", "question": "1+1?", "gold": "2", "rationale": "one more", "answer_text": " 2.", "prediction": "2", "correct": True,
    "finished": True, "source": "psi", "round": 1, "sample": 0, "seed": 2**62 + 1, "num_tokens": 4, "prompt_ids": [5, 6],
    "rationale_ids": [7, 8, 9], "answer_ids": [2], "tokens": ["one", " more", "#"], "logp_psi": [-0.5, -1.0, -0.25],
    "logp_theta": [-1.0, -1.0, -0.5], "logp_answer": -0.125,
}  # fmt: skip
HOSTILE = [
    "</script><script>boom()</script>", '<img src=x onerror="boom()">', "[x](javascript:boom())", "</table><style>*{display:none}",
    "\u202egnp.exe\u202c", "nul\x00 bell\x07", "\ud800 alone \udfff", "x" * 100_000, "𝒳 \u2028 \u2029 ]]> <!-- --> ${boom()}",
]  # fmt: skip


def unpacked(packed, name):
    return json.loads(gzip.decompress(packed.blobs[name]))


def values(packed, name):
    column = unpacked(packed, "rows")["columns"][name]
    return [None if v is None else column["texts"][v] for v in column["values"]] if column["kind"] == "text" else column["values"]


# What can be shown


def test_every_kind_of_table_is_read_alike(tmp_path):
    rows = [ROW, ROW | {"sample": 1, "correct": None, "tokens": None, "rationale_ids": None, "logp_psi": None, "logp_theta": None}]
    write_table(rows, RATIONALES, tmp_path / "rationales.parquet")
    tables = [tmp_path / "rationales.parquet", rows, pd.DataFrame(rows), Dataset.from_list(rows), [tmp_path / "rationales.parquet"]]
    heads = [unpacked(pack(read_rows(table)), "rows") for table in tables]
    for head in heads:
        assert head["columns"]["num_tokens"] == {"kind": "number", "values": [4, 4]} and head["token_counts"] == [3, 0]
        assert head["columns"]["kl"]["values"][1] is None and head["columns"]["correct"] == {"kind": "bool", "values": [1, None]}
    write_table([ROW], RATIONALES, tmp_path / "other.parquet")
    write_table([], RATIONALES, tmp_path / "empty.parquet")
    files = [tmp_path / f"{name}.parquet" for name in ("rationales", "empty", "other")]
    assert read_rows(files).num_rows == 3
    with pytest.raises(InputError, match=r"empty.parquet: has no row"):
        read_rows(files[1:2])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "table: has no row, there is nothing to show"),
        ([{"id": "a"}], "column question is missing.*; it needs id, question"),
        ([{"golds" if name == "gold" else name: value for name, value in ROW.items()}], "column gold is missing; did you mean 'golds'"),
        ([ROW, ROW | {"logp_psi": [-1.0]}], "row 2: logp_psi has 1 values for 3 tokens"),
        ([ROW, ROW | {"tokens": ["a"]}], "row 2: logp_psi has 3 values for 1 tokens"),
        ([ROW, ROW | {"tokens": None}], "row 2: logp_psi has 3 values for 0 tokens"),
        ([ROW, ROW | {"question": None}], "row 2: question: is missing"),
        ([ROW, ROW | {"finished": None}], "row 2: finished: is missing"),
        ([ROW, ROW | {"tokens": ["one", None, "#"]}], "tokens: a token is null"),
        ([ROW, ROW | {"correct": "yes"}], "row 2: correct: must be bool, not 'yes'"),
        ([ROW, ROW | {"gold": 4}], "row 2: gold: must be string, not 4"),
        ([ROW, 3], "row 2: must be a mapping"),
        (3, "must be a parquet path"),
    ],
)
def test_bad_tables_end_in_one_sentence(rows, words):
    with pytest.raises(InputError, match=words) as error:
        pack(read_rows(rows))
    assert "\n" not in str(error.value)


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "rationales.parquet"
    with pytest.raises(InputError, match=r"rationales.parquet: no such file"):
        read_rows(path)
    with pytest.raises(InputError, match=r"is a directory; name a file in it, such as .*rationales.parquet"):
        read_rows(tmp_path)
    path.write_bytes(b"PAR1 no parquet")
    with pytest.raises(InputError, match=r"rationales.parquet: is no whole parquet file"):
        to_html(path, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("bad", [float("-inf"), float("nan"), None])
def test_tokens_without_a_finite_log_probability_are_shown_without_one(bad):
    one, all_of_them = ROW | {"logp_theta": [bad, -1.0, -1.0]}, ROW | {"logp_psi": [bad] * 3}
    for row, psi in ((one, [-1.75]), (all_of_them, [None])):
        packed = pack(read_rows([row]))
        assert values(packed, "psi") == psi and values(packed, "kl") == [None]
        assert "1 rationale" in plain_text(packed) and "<table>" in static_table(packed)


def test_joiners_are_drawn_only_where_they_hide():
    family, persian, hidden = "👩\u200d👧", "می\u200cخواهم", "pass\u200dword"
    for text, drawn in ((family, family), (persian, persian), (hidden, "pass⟨U+200D⟩word"), ("\u200c", "⟨U+200C⟩")):
        assert drawn in plain_text(pack(read_rows([ROW | {"question": text}])))


def test_unknown_columns_of_one_value_are_kept_and_others_left_out():
    packed = pack(read_rows([ROW | {"style": "careful", "reward": float("nan"), "nested": {"a": 1}}]))
    assert values(packed, "style") == ["careful"] and values(packed, "reward") == [None]
    assert "nested" not in unpacked(packed, "rows")["columns"]


# Packing


def test_sums_are_exact_and_worked_by_hand():
    packed = pack(read_rows([ROW]))
    assert values(packed, "psi") == [-1.75] and values(packed, "theta") == [-2.5]
    assert values(packed, "ratio") == [0.75] and values(packed, "elbo") == [-0.875]
    k3 = np.exp(-0.5) - 1 + 0.5 + 0 + np.exp(-0.25) - 1 + 0.25
    assert values(packed, "kl") == [pytest.approx(k3, rel=1e-12)]
    assert values(packed, "seed") == [str(2**62 + 1)]  # JavaScript would round the number


def test_quantising_by_hand():
    codes, error = quantise(np.array([0.0, -4.0, 4.0, -1.0, np.nan]), 4.0, np.uint8)
    assert codes.tolist() == [127, 0, 254, 63, 255]  # 127·(1 ± √(|x|/4)), -1: 127 - 63.5 rounded half to even
    assert error == pytest.approx(4 * (64 / 127) ** 2 - 1)


@given(hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(-30, 30)), st.sampled_from([np.uint8, np.uint16]))
def test_the_stated_error_holds_for_what_the_page_computes(numbers, kind):
    scale = float(np.max(np.abs(numbers))) or 1.0
    codes, error = quantise(numbers, scale, kind)
    step = codes.astype(float) / (np.iinfo(kind).max // 2) - 1
    back = np.sign(step) * scale * step * step  # data.js: stored()
    assert np.max(np.abs(back - numbers)) <= error + 1e-9
    assert error <= scale * (1.5 / (np.iinfo(kind).max // 2))


def test_equal_log_probabilities_have_a_ratio_of_zero():
    packed = pack(read_rows([ROW | {"logp_theta": [-1.0, -1.0, -30.0]}]))
    psi, theta = (np.frombuffer(gzip.decompress(packed.blobs[name]), "<u2") for name in ("psi", "theta"))
    assert psi[1] == theta[1]


def test_token_texts_and_ids_survive():
    rows = [ROW, ROW | {"tokens": ["one", "one", "µ"], "rationale_ids": [7, 70, 9], "rationale": "oneone"}]
    packed = pack(read_rows(rows))
    vocabulary = unpacked(packed, "vocab")
    places = np.frombuffer(gzip.decompress(packed.blobs["tokens"]), "<u2")
    assert [vocabulary["texts"][place] for place in places] == ["one", " more", "#", "one", "one", "µ"]
    assert [vocabulary["ids"][place] for place in places] == [7, 8, 9, 7, 70, 9]
    assert unpacked(packed, "ids")["prompt_ids"] == {"lists": [[5, 6]], "values": [0, 0]}
    head = unpacked(packed, "rows")
    assert head["text"] == {"starts": [0, 0], "lengths": [8, 6], "others": {}}
    assert unpacked(pack(read_rows([ROW | {"rationale": "else"}])), "rows")["text"]["others"] == {"0": "else"}


def many(problems, samples=4, tokens=60):
    rng = random.Random(0)
    for problem in range(problems):
        for sample in range(samples):
            texts = [f" w{rng.randrange(5000)}" for _ in range(tokens)]
            yield ROW | {
                "id": f"p{problem}", "sample": sample, "tokens": texts, "rationale": "".join(texts), "rationale_ids": None,
                "logp_psi": [-rng.random() for _ in texts], "logp_theta": [-rng.random() for _ in texts], "correct": rng.random() < 0.5,
            }  # fmt: skip


def test_a_table_that_is_too_large_is_sampled_by_whole_problems(tmp_path):
    table = read_rows(list(many(60)))
    whole = pack(table)
    assert whole.note == "" and whole.table.num_rows == 240
    limit = whole.size / 2.5e6
    sampled = pack(table, max_mb=limit)
    assert sampled.size <= limit * 1e6 and 40 < sampled.table.num_rows < 120
    counts = pd.Series(sampled.table["id"].to_pylist()).value_counts()
    assert (counts == 4).all()
    assert re.match(rf"A random {len(counts)} of 60 problems \({len(counts) * 4} of 240 rationales\): all would exceed", sampled.note)
    assert unpacked(sampled, "rows")["note"] == sampled.note and sampled.note in static_table(sampled)
    assert pack(table, max_mb=limit).table.equals(sampled.table)
    with pytest.raises(InputError, match="one problem alone is larger"):
        pack(table, max_mb=1e-4)


# HTML and text


def test_hostile_text_never_becomes_markup(tmp_path):
    rows = [
        ROW | dict.fromkeys(("id", "question", "gold", "rationale", "answer_text", "prediction", "source"), text)
        | {"tokens": [text, text[:5], "#"], "sample": number} for number, text in enumerate(HOSTILE)
    ]  # fmt: skip
    page = to_html(rows, tmp_path / "page.html", title="</title><script>boom()</script>").read_text(encoding="utf-8")
    packed = pack(read_rows(rows), "</script>")
    for text in (page, fragment(packed), static_table(packed)):
        markup = re.sub(r'<script type="module">.*?</script>', "", text, flags=re.DOTALL)
        assert not re.search(r"<img|<script>|<style>\*|<[^>]*\bon\w+=|\x00|\u202e", markup)
        assert len(re.findall("</script", text)) == len(re.findall("<script", text))
    assert len(static_table(packed)) < 400_000
    plain = plain_text(packed)
    assert not HIDDEN.search(plain.replace("\n", "")) and max(map(len, plain.splitlines())) < 400
    page.encode("utf-8")


def test_the_page_fetches_nothing_and_lets_only_its_own_script_run(tmp_path):
    page = to_html([ROW], tmp_path / "rationales.html", title="A & B").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|\beval\(|innerHTML|Function\(", page)
    assert "default-src 'none'; script-src 'sha256-" in page and "<title>A &amp; B</title>" in page
    assert [path.name for path in tmp_path.iterdir()] == ["rationales.html"]
    RationaleViewer([ROW], title="A & B").to_html(tmp_path / "live.html")
    assert (tmp_path / "live.html").read_text(encoding="utf-8") == page


def test_the_script_is_one_module_without_imports():
    source = script()
    assert "\nimport " not in source and source.count("export default") == 1 and source.endswith("export { mount, mountAll };\n")
    names = re.findall(r"^(?:async )?(?:function|const|class|let) (\w+)", source, flags=re.MULTILINE)
    assert len(names) == len(set(names))


def test_the_static_table_survives_a_sanitiser():
    text = static_table(pack(read_rows([ROW, ROW | {"finished": False}, ROW | {"prediction": None, "correct": False}])))
    assert set(re.findall(r"<(\w+)", text)) <= {"details", "summary", "p", "table", "thead", "tbody", "tr", "th", "td", "span", "br"}
    assert '<span style="background-color:rgba(203,96,4,0.06)" title="log P_ψ -0.500">one</span>' in text
    assert "✓ correct" in text and "… unfinished" in text and "∅ unparsed" in text


def test_plain_text_has_a_block_per_token():
    text = plain_text(pack(read_rows([ROW | {"logp_psi": [0.0, -2.5, -5.0]}] * 14)))
    assert "✓ correct    psi #0 a: 1+1?" in text and "▁▅█  −log P_ψ, ▁ 0 … █ 5.0 nats" in text and text.endswith("… 2 more")
    assert "▁" not in plain_text(pack(read_rows([ROW | {"tokens": None, "rationale_ids": None, "logp_psi": None, "logp_theta": None}])))


# In a notebook


def test_batch_runs_get_html_that_holds_everything_and_no_widget(monkeypatch):
    monkeypatch.setenv("BRITE_BATCH", "1")
    bundle = show([ROW])._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert "<details>" in bundle["text/html"] and 'data-blob="tokens"' in bundle["text/html"]


def test_a_live_viewer_has_all_three_kinds_of_output(monkeypatch):
    monkeypatch.delenv("BRITE_BATCH", raising=False)
    viewer = show([ROW, ROW | {"sample": 1}])
    data, _ = viewer._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"} <= set(data)
    viewer.selection = [1]
    assert viewer.selected_rows() == [viewer.packed.table.to_pylist()[1]] and viewer.selected_rows()[0]["sample"] == 1
    viewer.close()


def test_annotations_are_saved_beside_the_table_and_read_again(tmp_path, monkeypatch):
    write_table([ROW], RATIONALES, tmp_path / "rationales.parquet")
    record = {"id": "a", "source": "psi", "round": 1, "sample": 0, "tags": ["good"], "note": "ünï\u2028"}
    viewer = RationaleViewer(tmp_path / "rationales.parquet")
    viewer.annotations = [record]
    assert read_annotations(tmp_path / "annotations.jsonl") == [record]
    assert RationaleViewer(tmp_path / "rationales.parquet").annotations == [record]
    monkeypatch.chdir(tmp_path.parent)  # as a notebook's directory is not the project
    below_the_project = os.path.relpath(tmp_path / "rationales.parquet", PROJECT_ROOT)
    assert RationaleViewer(below_the_project).annotations == [record]
    elsewhere = record | {"note": "a line\u2028or two"}  # JavaScript does not escape it
    (tmp_path / "from a page.jsonl").write_text(json.dumps(elsewhere, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_annotations(tmp_path / "from a page.jsonl") == [elsewhere]
    write_annotations([record, record | {"copy": 1}], tmp_path / "other.jsonl")
    assert len(RationaleViewer([ROW], annotations_path=tmp_path / "other.jsonl").annotations) == 2
    for line in ("[]", "{", '{"id": "a"}', json.dumps(record | {"tags": "good"})):
        (tmp_path / "other.jsonl").write_text(line + "\n")
        with pytest.raises(InputError, match=r"other.jsonl: line 1: is no annotation"):
            RationaleViewer([ROW], annotations_path=tmp_path / "other.jsonl")


def test_tables_from_arrow_with_other_types_are_read(tmp_path):
    table = pa.Table.from_pylist([ROW], RATIONALES)
    wide = table.set_column(0, "id", table["id"].cast(pa.large_string()))
    pq.write_table(wide, tmp_path / "wide.parquet")
    assert read_rows(tmp_path / "wide.parquet")["id"].to_pylist() == ["a"]
    assert html.escape("<") not in plain_text(pack(read_rows([ROW])))
