"""The standalone page: everything a person does in it, by pointer and by keyboard."""

import json
import re

import numpy as np
import pytest
from example_tables import three_sources
from playwright.sync_api import expect

from brite_lib.stats import pass_at_k
from brite_lib.viewer.annotations import read_annotations

ROWS = three_sources()


def lines(page):
    return int(page.locator(".line").first.get_attribute("aria-setsize")) if page.locator(".line").count() else 0


def search(page, query):
    page.locator(".filter").fill(query)
    page.wait_for_timeout(200)


def press(page, keys):
    for key in keys.split():
        page.keyboard.press(key)


def at_list(page, query="", ungrouped=True):
    """The list has the focus and shows the rows of a query, in table order."""
    if ungrouped and page.get_by_role("button", name="Group").get_attribute("aria-pressed") == "true":
        page.get_by_role("button", name="Group").click()
    search(page, query)
    page.locator(".list").focus()
    page.keyboard.press("Home")


def test_filter_sort_and_group(browse, picture):
    page = browse(ROWS, "GSM8K, three sources")
    assert page.locator("h1").inner_text() == "GSM8K, three sources"
    judged = [row["correct"] for row in ROWS if row["correct"] is not None]
    assert page.locator(".count").inner_text() == f"36 rationales · 3 problems · {100 * np.mean(judged):.1f} % correct"
    assert lines(page) == 36 + 3
    press_group = page.get_by_role("button", name="Group")
    press_group.click()
    assert lines(page) == 36
    for query, rows in {
        "correct:false": [row for row in ROWS if row["correct"] is False],
        "is:unparsed": [row for row in ROWS if row["finished"] and row["correct"] is False and row["prediction"] is None],
        "is:unfinished,unjudged": [row for row in ROWS if not row["finished"] or row["correct"] is None],
        'source:psi text:"THEREFORE" len>5': [row for row in ROWS if row["source"] == "psi" and "therefore" in row["rationale"]],
        f"theta>{sum(ROWS[4]['logp_theta'])}": [row for row in ROWS if sum(row["logp_theta"]) > sum(ROWS[4]["logp_theta"])],
        "answer:know": [row for row in ROWS if row["answer_text"] and "know" in row["answer_text"]],
        "nothing like this": [],
    }.items():
        search(page, query)
        assert lines(page) == len(rows), query
    assert "No rationale fits" in page.locator(".detail").inner_text()
    search(page, "lenn>3")
    assert page.locator(".problem-line").inner_text() == 'There is no column "lenn"; did you mean "len"?'
    assert page.locator(".filter").get_attribute("aria-invalid") == "true"
    picture(page, "query-error")
    search(page, "")
    page.get_by_label("Sort by").select_option("kl")
    psi, theta = ([np.array(row[name]) for row in ROWS] for name in ("logp_psi", "logp_theta"))
    kl = [float(np.sum(np.exp(t - p) - 1 + p - t)) for p, t in zip(psi, theta, strict=True)]
    assert {text.split(" · ")[1] for text in page.locator(".row .label").all_inner_texts()} == {row["id"] for row in ROWS}  # ungrouped
    shown = [float(text.split()[1]) for text in page.locator(".row .told").all_inner_texts()]
    assert shown == pytest.approx(sorted(kl, reverse=True)[: len(shown)], rel=0.01)
    page.get_by_role("button", name="Reverse").click()
    assert float(page.locator(".row .told").first.inner_text().split()[1]) == pytest.approx(min(kl), rel=0.01)
    assert not page.errors and not page.requests_out


def test_the_heat_shows_the_numbers_of_the_table(browse, picture):
    page = browse(ROWS)
    at_list(page, "source:psi")
    row = next(row for row in ROWS if row["source"] == "psi")
    theta, psi = np.array(row["logp_theta"]), np.array(row["logp_psi"])
    ratio = psi - theta
    reward = -ratio + np.r_[np.zeros(len(ratio) - 1), row["logp_answer"]]
    expected = {
        "log P_ψ": psi, "log P_θ": theta, "log-ratio": ratio, "KL": np.exp(-ratio) - 1 + ratio, "reward": reward,
        "advantage": np.array(row["advantage"]), "value": np.array(row["value"]), "P_θ": np.exp(theta),
    }  # fmt: skip
    press(page, "3 i")
    for place in range(len(theta)):
        page.keyboard.press("ArrowRight")
        card = page.locator(".card").inner_text().replace("−", "-").split("\n")
        assert f"token {place + 1} of {len(theta)}" in " ".join(card)
        for title, values in expected.items():
            assert float(card[card.index(title) + 1]) == pytest.approx(values[place], abs=2e-3, rel=0.01), (title, place)
    page.mouse.move(0, 0)
    page.locator(".token").nth(4).hover()
    assert page.locator(".card").is_visible()
    picture(page, "heat-ratio")
    colours = page.locator(".token").evaluate_all("spans => spans.map((span) => getComputedStyle(span).backgroundColor)")
    blue = [bool(re.match(r"rgba\(33, 102, 172", colour)) for colour in colours]
    assert all(is_blue == (value > 0) for is_blue, value in zip(blue, ratio, strict=True) if abs(value) > 0.02)
    strength = [float(re.findall(r"[\d.]+", colour)[3]) for colour in colours]
    assert np.corrcoef(strength, np.minimum(np.abs(ratio), 1))[0, 1] > 0.99
    for key in "0124567":
        page.locator(".list").focus()
        page.keyboard.press(key)
        assert page.locator('[role="radio"][aria-checked="true"]').get_attribute("title") == f"key {key}"
        picture(page, f"channel-{key}")
    assert not page.errors


def test_a_table_without_some_channels_offers_only_what_it_has(browse):
    rows = [{name: value for name, value in row.items() if name not in ("logp_psi", "advantage", "value")} for row in ROWS]
    page = browse(rows)
    assert page.locator('[role="radio"]').all_inner_texts() == ["text", "log P_θ"]
    bare = [{name: value for name, value in row.items() if name not in ("tokens", "logp_theta", "rationale_ids")} for row in rows]
    page = browse(bare, wait=".rationale.plain")
    assert page.locator('[role="radio"]').count() == 0
    assert page.locator(".rationale").inner_text() == bare[0]["rationale"]
    assert not page.errors


def test_differences_and_flips(browse, picture):
    page = browse(ROWS)
    at_list(page, "id:gsm8k-0000")
    press(page, "d")
    assert page.locator(".sides section").count() == 2
    one, other = ("".join(page.locator(".sides .rationale").nth(side).all_inner_texts()) for side in (0, 1))
    assert {one, other} <= {row["rationale"] for row in ROWS if row["id"] == "gsm8k-0000"}
    assert other == ROWS[0]["rationale"]
    assert page.locator("del").count() and page.locator("ins").count()
    picture(page, "difference")
    page.get_by_label("Compare with").select_option(label="brite #2 · ✓ correct")
    assert page.locator(".sides .rationale").first.inner_text() == ROWS[10]["rationale"]
    at_list(page, ungrouped=True)
    press(page, "f")
    by_name = {(row["source"], row["id"], row["sample"]): row["correct"] for row in ROWS}
    pairs = [(by_name["base", problem, k], by_name["brite", problem, k]) for problem in {row["id"] for row in ROWS} for k in range(4)]
    fixed, broken = pairs.count((False, True)), pairs.count((True, False))
    assert fixed and broken
    assert page.locator(".flips button").all_inner_texts() == [f"wrong → right ({fixed})", f"right → wrong ({broken})"]
    assert lines(page) == fixed
    picture(page, "flips")
    page.get_by_role("button", name="right → wrong").click()
    assert lines(page) == broken and "✗ wrong" in page.locator(".row").first.inner_text()
    page.locator(".list").focus()
    press(page, "f")
    assert lines(page) == 36
    assert not page.errors


def test_pass_rates_of_what_is_shown(browse, picture):
    page = browse(ROWS)
    at_list(page, ungrouped=False)
    press(page, "p")
    table = [[cell.split(" (")[0] for cell in row.split("\t")] for row in page.locator(".rates").inner_text().split("\n")]
    picture(page, "pass-at-k")
    assert table[0] == ["source", "problems", "rationales", "pass@1", "pass@2", "pass@4"]
    for line in table[1:]:
        judged = [row for row in ROWS if row["source"] == line[0] and row["correct"] is not None]
        counts = [[row["correct"] for row in judged if row["id"] == problem] for problem in dict.fromkeys(row["id"] for row in judged)]
        for cell, k in zip(line[3:], (1, 2, 4), strict=True):
            rate = np.mean([pass_at_k(len(verdicts), sum(verdicts), k) for verdicts in counts if len(verdicts) >= k])
            assert cell == f"{100 * rate:.1f} %"
    press(page, "Escape")
    page.locator(".line.problem").first.click()
    judged = [row["correct"] for row in ROWS if (row["source"], row["id"]) == ("base", ROWS[0]["id"])]
    rates = " · ".join(f"pass@{k} {100 * pass_at_k(len(judged), sum(judged), k):.1f} %" for k in (1, 2, 4))
    assert f"base (4) · {rates}" in page.locator(".detail").inner_text()
    assert "pass@" not in page.locator(".line.problem").first.inner_text()  # a mixture of sources has none
    search(page, "source:psi")
    assert "pass@4" in page.locator(".line.problem").first.inner_text()
    picture(page, "problem")


def test_the_keyboard_alone_reaches_everything(browse):
    page = browse(ROWS)
    page.locator("body").press("Tab")
    reached = []
    for _ in range(40):
        reached.append(
            page.evaluate("""() => {
            let at = document.activeElement;
            while (at.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
            return at === document.body ? "out" : at.getAttribute("aria-label") || at.textContent.slice(0, 20) || at.className;
        }""")
        )
        if reached[-1] == "out":
            break
        page.keyboard.press("Tab")
    wanted = ["Filter", "Keys and filter language", "Sort by", "Reverse the order", "Group", "Flips", "pass@k", "Export", "Rationales"]
    assert [name for name in reached if name in wanted] == wanted
    assert {"Select", "Compare", "log P_ψ", "tags", "note"} <= set(reached)
    assert any(name.startswith("Tokens of the rationale") for name in reached)
    at_list(page)
    place = lambda: int(page.locator(".line.active").get_attribute("data-place"))  # noqa: E731
    for keys, expected in {"j j": 2, "k": 1, "ArrowDown": 2, "End": 35, "Home": 0, "l": 12, "h": 0, "PageDown": None}.items():
        press(page, keys)
        assert place() == expected or (expected is None and place() > 3), keys
    press(page, "Home /")
    page.keyboard.type("source:psi")
    page.wait_for_timeout(200)
    assert lines(page) == 12
    press(page, "Escape")
    assert page.locator(".filter").input_value() == "" and lines(page) == 36
    press(page, "Escape j x Space x a")
    assert "36 selected" in page.locator(".count").inner_text()
    press(page, "a g")
    assert "selected" not in page.locator(".count").inner_text() and lines(page) == 39
    press(page, "Home Enter")
    assert lines(page) == 27
    press(page, "Enter j t")
    page.keyboard.type("odd, nice")
    press(page, "Tab")
    page.keyboard.type("what a note")
    press(page, "Escape ?")
    assert page.get_by_role("dialog").is_visible()
    press(page, "Escape e")
    assert page.get_by_role("dialog", name="Export").is_visible()
    press(page, "Escape s")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_label("Sort by")).not_to_have_value("")
    press(page, "Escape [")
    assert page.locator(".sides").is_visible()
    search(page, "tag:odd note:what")
    assert lines(page) == 2
    assert not page.errors


def test_a_closed_dialog_does_not_take_the_focus_back(browse):
    page = browse(ROWS)
    at_list(page)
    page.evaluate("""async () => {
        const root = document.querySelector(".brite-rationales").shadowRoot;
        const press = (key) => root.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, composed: true }));
        press("?");
        const closed = new Promise((resolve) => root.querySelector("dialog").addEventListener("close", resolve));
        root.querySelector("dialog").close();
        press("s"); // before the dialog knows that it was closed
        await closed;
    }""")
    expect(page.get_by_label("Sort by")).to_be_focused()
    press(page, "Escape ? Escape")
    expect(page.locator(".list")).to_be_focused()


def test_tags_and_notes_stay_and_can_be_downloaded(browse, tmp_path, picture):
    page = browse(ROWS)
    at_list(page)
    for row, tag in ((0, "good"), (5, "odd")):
        page.locator(".row").nth(row).click()
        page.get_by_label("Tags").fill(f"{tag}, seen")
        page.get_by_label("Note").fill(f"row {row}\nsecond line")
        page.locator(".list").focus()
    picture(page, "tags")
    page.reload()
    page.locator(".token").first.wait_for()
    at_list(page, "tag:odd")
    assert lines(page) == 1 and page.get_by_label("Note").input_value() == "row 5\nsecond line"
    saved = export(page, "Tags and notes", tmp_path)
    names = ("id", "source", "round", "sample")
    assert read_annotations(saved) == [
        {name: ROWS[row][name] for name in names} | {"tags": [tag, "seen"], "note": f"row {row}\nsecond line"}
        for row, tag in ((0, "good"), (5, "odd"))
    ]


def export(page, format_name, folder):
    page.locator(".list").focus()
    page.keyboard.press("e")
    page.get_by_role("dialog").get_by_text(format_name, exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    page.keyboard.press("Escape")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_jsonl_export_has_every_column_of_one_value(browse, tmp_path, picture):
    page = browse(ROWS)
    at_list(page, "source:brite")
    press(page, "x j x")
    page.keyboard.press("e")
    picture(page, "export")
    page.keyboard.press("Escape")
    written = [json.loads(line) for line in export(page, "JSONL", tmp_path).read_text(encoding="utf-8").splitlines()]
    wanted = [row for row in ROWS if row["source"] == "brite"][:2]
    for got, row in zip(written, wanted, strict=True):
        for name, value in row.items():
            if not isinstance(value, list) and value is not None:
                assert got[name] == value, name
        assert got["ratio"] == pytest.approx(sum(row["logp_psi"]) - sum(row["logp_theta"]), rel=1e-5)
        assert got["tags"] == [] and got["note"] == "" and got["status"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_every_state_fits_and_is_accessible(browse, picture, serious, theme, width):
    page = browse(ROWS, "GSM8K, three sources", width=width, height=900, theme=theme)
    states = {"heat": "j 3", "text": "0", "difference": "0 d", "flips": "f", "problem": "f Home"}
    states |= {"keys": "?", "export": "Escape e", "rates": "Escape p"}
    shown = {"heat": ".token", "text": ".rationale.plain", "difference": ".sides", "flips": ".flips", "problem": ".votes"}
    at_list(page, ungrouped=False)
    for state, keys in states.items():
        press(page, keys)
        page.wait_for_timeout(100)
        assert page.locator(shown.get(state, "dialog")).first.is_visible(), state
        picture(page, f"{theme}-{width}-{state}")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width, state
        assert serious(page) == [], state
    assert not page.errors


@pytest.mark.parametrize("width", [1000, 860, 660])  # 860 in the report, 660 in a notebook of 800
def test_ids_and_counts_of_problems_are_not_cut(browse, width):
    page = browse([row | {"id": f"gsm8k-test-{row['id'][-5:]}"} for row in ROWS], width=width)
    for part in (".top", ".label"):
        whole = page.locator(f".line.problem {part}").evaluate_all("all => all.map((e) => e.scrollWidth <= e.clientWidth)")
        assert whole and all(whole), part


def test_pass_rates_fit_a_telephone(browse):
    page = browse(ROWS, width=400)
    at_list(page, ungrouped=False)
    press(page, "p")
    assert page.locator("dialog").evaluate("e => e.scrollWidth <= e.clientWidth")
    heights = page.locator(".rates tbody td").evaluate_all("all => all.map((e) => e.clientHeight)")
    assert max(heights) < 2 * min(heights)  # "100.0 %" is on one line


def test_tokens_of_arabic_start_at_the_right_and_emoji_stay_whole(browse, picture):
    tokens = ["أ", "حسب", " المجموع", ": 48", " + 24", " 👩\u200d👧", " می\u200cخواهم", " pass\u200dword"]
    numbers = {"tokens": tokens, "rationale": "".join(tokens), "logp_psi": [-1.0] * 8, "logp_theta": [-2.0] * 8, "rationale_ids": [1] * 8}
    numbers |= dict.fromkeys(("advantage", "value"))
    page = browse([{name: value for name, value in ROWS[0].items() if name != "prediction"} | numbers])
    box = page.locator(".rationale").bounding_box()
    first = page.locator(".token").first.bounding_box()
    assert first["x"] + first["width"] > box["x"] + box["width"] - 20
    text = page.locator(".rationale").inner_text()
    assert "👩\u200d👧" in text and "می\u200cخواهم" in text and "pass⟨U+200D⟩word" in text
    assert "predicted" not in page.locator(".answers").inner_text()  # there is no such column
    picture(page, "right-to-left")


def test_a_table_without_any_prediction_is_unparsed_and_an_empty_column_can_be_asked_for(browse):
    page = browse([row | {"prediction": None} for row in ROWS if row["correct"] is False and row["finished"]])
    assert set(page.locator(".row .badge").all_inner_texts()) == {"∅ unparsed"}
    search(page, "reward:null prediction:null")
    assert lines(page) and page.locator(".problem-line").text_content() == ""
    assert not {"reward", "prediction"} & set(page.get_by_label("Sort by").locator("option").evaluate_all("all => all.map((e) => e.value)"))


def test_one_rationale_is_one(browse):
    page = browse(ROWS[:1])
    assert page.locator(".count").inner_text().startswith("1 rationale · 1 problem")


def test_damaged_pages_say_so_in_one_sentence(browse, tmp_path, visit):
    browse(ROWS)
    whole = (tmp_path / "rationales.html").read_text(encoding="utf-8")
    for name, change, sentence in [
        ("rows", "", "The rationales cannot be shown:"),
        ("tokens", "AAAA", "The tokens could not be unpacked: the file is damaged or incomplete."),
    ]:
        damaged = re.sub(rf'(data-blob="{name}">)[^<]+', rf"\g<1>{change}", whole)
        (tmp_path / "damaged.html").write_text(damaged, encoding="utf-8")
        page = visit(tmp_path / "damaged.html", ready="[role=alert]:not(:empty)")
        assert sentence in page.locator("[role=alert]").inner_text()
        assert not page.errors
    cut = re.sub(r'<script type="text/plain" data-blob="vocab">[^<]+</script>', "", whole)
    (tmp_path / "cut.html").write_text(cut, encoding="utf-8")
    page = visit(tmp_path / "cut.html", ready="[role=alert]")
    assert (
        page.locator("[role=alert]").inner_text() == 'The rationales cannot be shown: The page is incomplete: its part "vocab" is missing.'
    )
