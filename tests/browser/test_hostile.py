"""Text that a model wrote must never run, hide anything or break the page, the file or the notebook."""

import base64

import pytest
from example_tables import HOSTILE, hostile

from brite_lib.tables import read_rationales
from brite_lib.viewer.pack import pack
from brite_lib.viewer.page import fragment, script, static_table
from brite_lib.viewer.table import read_rows

ROWS = hostile()


def nothing_ran(page):
    assert page.evaluate("globalThis.ran") is None
    assert not page.errors and not page.requests_out
    assert page.locator("img, iframe, svg, a[href]").count() == 0


def test_nothing_runs_in_any_state(browse, picture, tmp_path):
    page = browse(ROWS, title="</title><script>globalThis.ran = 'title'</script>")
    page.locator(".list").focus()
    for place in range(len(ROWS)):
        for keys in ("0", "1", "d", "i ArrowRight ArrowRight", "t"):
            for key in keys.split():
                page.keyboard.press(key)
        page.keyboard.type('<img src=x onerror="globalThis.ran=1">')
        page.keyboard.press("Escape")
        assert int(page.locator(".line.active").get_attribute("data-place")) == place
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 1280
        detail = page.locator(".detail").bounding_box()
        assert detail["x"] > 300 and detail["width"] > 300
        page.keyboard.press("j")
    for key in ("?", "p", "e"):
        page.locator(".list").focus()
        page.keyboard.press(key)
        assert page.locator("dialog").bounding_box()["width"] < 1280
        page.keyboard.press("Escape")
    page.keyboard.press("f")
    picture(page, "hostile-flips")
    page.locator(".filter").fill(HOSTILE["image"])
    page.wait_for_timeout(200)
    nothing_ran(page)


@pytest.mark.parametrize("width", [1280, 400])
def test_what_hides_is_drawn_and_what_is_long_is_broken(browse, picture, width):
    page = browse(ROWS, width=width)
    for name, drawn in {"direction": "⟨U+202E⟩", "controls": "␀", "surrogates": "\ufffd", "smuggled": "⟨U+E0075⟩"}.items():
        page.locator(".row").first.wait_for()
        page.locator(".filter").fill(f"id:{name}*")
        page.wait_for_timeout(200)
        assert page.locator(".row").count() == 1, name
        assert drawn in page.locator(".detail").inner_text()
        assert drawn in page.locator(".row").inner_text()
        picture(page, f"hostile-{width}-{name}")
    page.locator(".filter").fill("id:long*")
    page.wait_for_timeout(300)
    page.locator(".list").focus()
    page.keyboard.press("0")
    picture(page, f"hostile-{width}-long")
    assert len(page.locator(".rationale").inner_text()) == 100_000
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    nothing_ran(page)


def test_a_long_question_leaves_the_rationale_in_sight(browse):
    page = browse(ROWS)
    page.locator(".filter").fill("id:lines*")
    page.wait_for_timeout(200)
    assert page.locator(".rationale").bounding_box()["y"] < 800


def test_exports_of_hostile_text_can_be_read(browse, tmp_path):
    page = browse(ROWS)
    page.locator(".list").focus()
    page.keyboard.press("e")
    page.get_by_text("SFT rows", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "rationales.jsonl")
    rows = read_rationales(tmp_path / "rationales.jsonl")
    by_sample = {row["sample"]: row["rationale"] for row in rows}
    expected = [text.replace("\ud800", "\ufffd").replace("\udfff", "\ufffd") for text in HOSTILE.values()]
    assert [by_sample[sample] for sample in range(len(expected))] == expected


def test_the_static_table_is_only_text(visit, tmp_path, picture):
    path = tmp_path / "static.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{static_table(pack(read_rows(ROWS)))}", encoding="utf-8")
    page = visit(path, ready="summary")
    page.locator("summary").click()
    assert page.locator("tbody tr").count() == len(ROWS)
    picture(page, "static-hostile")
    nothing_ran(page)


def test_tex_is_typeset_by_the_pages_mathjax_and_its_links_are_not(visit, tmp_path, mathjax, picture):
    row = ROWS[0] | {
        "question": "Is $\\frac{1}{2} + x^2$ right?",
        "rationale": "It is $\\alpha$.",
        "tokens": None,
        "logp_psi": None,
        "logp_theta": None,
    }
    unsafe = row | {"question": HOSTILE["tex"], "sample": 1, "id": "b"}
    tricky = row | {"question": r"$\mathchoice{}{}{}{}\hre\relax{} \text{a}$ <a href='javascript:ran=1'>", "sample": 2, "id": "c"}
    config = "MathJax = {tex: {inlineMath: [['$', '$']]}, startup: {typeset: false}}"
    body = fragment(pack(read_rows([row, unsafe, tricky])))
    path = tmp_path / "tex.html"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><script>{config}</script><script src='{mathjax.as_uri()}'></script><body>{body}",
        encoding="utf-8",
    )
    page = visit(path, ready=".row")
    page.locator(".list").focus()
    page.keyboard.press("0")
    page.locator(".question mjx-container").wait_for()
    assert page.locator(".rationale mjx-container").count() == 1
    picture(page, "tex")
    page.keyboard.press("j")
    page.wait_for_timeout(300)
    assert page.locator(".question mjx-container").count() == 0 and "\\href" in page.locator(".question").inner_text()
    page.keyboard.press("j")
    page.wait_for_timeout(300)
    nothing_ran(page)


def test_the_module_can_be_imported_and_mounted_by_another_page(visit, tmp_path):
    path = tmp_path / "empty.html"
    path.write_text("<!doctype html><meta charset=utf-8><body><div id=here></div>", encoding="utf-8")
    page = visit(path, ready=None)
    packed = pack(read_rows(ROWS))
    source = base64.b64encode(script().encode()).decode()
    blobs = {name: base64.b64encode(blob).decode() for name, blob in packed.blobs.items()}
    told = page.evaluate(
        """async ([source, blobs]) => {
            const { mount } = await import(`data:text/javascript;base64,${source}`);
            const told = [];
            const view = await mount(document.getElementById("here"), {blobs, css: ""}, {onChange: (change) => told.push(change)});
            await view.whole;
            view.update({query: "sample:3"});
            view.viewer.mark();
            const lines = document.querySelector(".brite-rationales").shadowRoot.querySelectorAll(".row").length;
            view.destroy();
            return {told, lines, left: document.getElementById("here").children.length};
        }""",
        [source, blobs],
    )
    assert told["lines"] == 1 and told["left"] == 0
    assert {"query": "sample:3"} in told["told"] and {"selection": [3]} in told["told"]
    assert not page.errors
