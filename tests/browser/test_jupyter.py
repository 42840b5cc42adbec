"""Notebooks in JupyterLab on loopback: live, and reopened after papermill without a kernel; and through nbconvert."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from example_tables import HOSTILE, hostile, three_sources
from playwright.sync_api import expect

from brite_lib.params import PROJECT_ROOT
from brite_lib.tables import RATIONALES, write_table
from brite_lib.viewer.annotations import read_annotations

ROWS = three_sources()
SHOW = "from brite_lib.viewer import show\n\nviewer = show({path!r}, title='From a notebook')\nviewer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the notebooks and their tables are, with Jupyter's own files (settings, trust) beside them."""
    folder = tmp_path_factory.mktemp("jupyter")
    write_table(ROWS, RATIONALES, folder / "rationales.parquet")
    bad = [{name: "\ufffd" if isinstance(value, str) and "\ud800" in value else value for name, value in row.items()} for row in hostile()]
    keep = [{name: value for name, value in row.items() if name != "tokens"} | {"logp_psi": None, "logp_theta": None} for row in bad]
    write_table(keep, RATIONALES, folder / "hostile" / "rationales.parquet")
    return folder


@pytest.fixture(scope="module")
def environment(folder):
    settings = {
        "apputils-extension/notification": {"checkForUpdates": False, "fetchNews": "false", "doNotDisturbMode": True},
        "notebook-extension/tracker": {"windowingMode": "none"},  # cells stay in the page while a test looks at them
    }
    for name, values in settings.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    own = {f"JUPYTER_{name}_DIR": str(folder / "jupyter" / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    return (
        os.environ
        | own
        | {"IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": str(PROJECT_ROOT), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    )


@pytest.fixture(scope="module")
def lab(folder, environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=secret", f"--ServerApp.root_dir={folder}", "--expose-app-in-browser",
    ]  # fmt: skip
    with (folder / "lab.log").open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder) as server:
        address = f"http://127.0.0.1:{port}/"
        for _ in range(240):
            assert server.poll() is None, (folder / "lab.log").read_text()
            try:
                urllib.request.urlopen(f"{address}api?token=secret", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
        server.terminate()
        server.wait(60)


def write_notebook(path, *cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


def open_in_lab(visit, lab, name, **options):
    page = visit(
        f"{lab}lab/workspaces/test-{time.monotonic_ns()}/tree/{name}?token=secret", local=lab, ready=".jp-Notebook .jp-Cell", **options
    )
    page.wait_for_function("() => globalThis.jupyterapp")
    return page


def execute(environment, notebook, output):
    """As a stage of a run."""
    command = [sys.executable, "-m", "brite_lib.execute", notebook, output, "{}"]
    return subprocess.run(command, env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=300)


def close_without_kernel(page):
    page.evaluate("() => { jupyterapp.serviceManager.sessions.shutdownAll(); }")


def test_live(visit, lab, folder, picture):
    read = "import json; print('IN PYTHON', json.dumps([viewer.annotations, viewer.selection, viewer.query, len(viewer.selected_rows())]))"
    write_notebook(folder / "live.ipynb", SHOW.format(path=str(folder / "rationales.parquet")), read)
    page = open_in_lab(visit, lab, "live.ipynb", width=1400, height=1000)
    idle = "() => globalThis.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
    page.wait_for_function(idle, timeout=120_000)
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.locator(".token").first.wait_for(timeout=120_000)
    viewer = page.locator(".brite-rationales").first
    viewer.scroll_into_view_if_needed()
    picture(page, "lab-live")
    viewer.locator(".row").nth(1).click()
    for key in ("j", "k", "x", "3"):  # JupyterLab has commands of its own on these keys
        page.keyboard.press(key)
    assert page.locator(".jp-Cell").count() == 2 or page.locator(".jp-CodeCell").count() >= 2
    assert viewer.locator(".count").inner_text().endswith("1 selected")
    assert viewer.locator('[role="radio"][aria-checked="true"]').inner_text() == "log-ratio"
    viewer.locator(".token").nth(2).hover()
    picture(page, "lab-heat")
    viewer.locator(".list").focus()
    page.keyboard.press("d")
    assert viewer.locator(".sides").is_visible()
    picture(page, "lab-difference")
    viewer.get_by_label("Sort by").select_option("kl")
    viewer.locator(".list").focus()
    page.keyboard.press("t")
    page.keyboard.type("from the page, xxx")
    page.keyboard.press("Tab")
    page.keyboard.type("a note")
    page.keyboard.press("Escape")
    viewer.locator(".filter").fill("source:base")
    page.wait_for_timeout(1500)
    page.evaluate("""() => {
        jupyterapp.shell.currentWidget.content.activeCellIndex = 1;
        jupyterapp.commands.execute('notebook:run-cell');
    }""")
    page.wait_for_function("() => document.body.innerText.includes('\"source:base\"')", timeout=60_000)
    told = json.loads(page.locator(".jp-OutputArea-output", has_text="IN PYTHON").inner_text().removeprefix("IN PYTHON").strip())
    (record,), selection, query, rows = told
    assert record["tags"] == ["from the page", "xxx"] and record["note"] == "a note"
    assert selection == [1] and query == "source:base" and rows == 1
    assert read_annotations(folder / "annotations.jsonl") == [record]
    assert not page.errors and not page.requests_out
    page.evaluate("() => { jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'}); }")
    page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
    viewer.scroll_into_view_if_needed()
    expect(viewer.locator(".line")).to_have_count(12 + 3)  # the list was hidden for a moment
    picture(page, "lab-dark")
    assert viewer.get_attribute("data-theme") == "dark"
    close_without_kernel(page)


def test_the_form_and_the_picker_draw_and_tell_python(visit, lab, folder, picture):
    for run, metrics in (("a", {"pass@1": 0.25}), ("b", {"pass@1": 0.75, "only here": 1.0})):
        record = {"stage": "brite", "params": {}, "seed": 0, "seconds": 1.0, "tokens_generated": 0, "tokens_trained": 0}
        path = folder / "runs" / run / "seed0/brite/stage.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record | {"inputs": {}, "outputs": {}, "metrics": metrics}))
    make = f"""from brite_lib.params import PsiParams
from brite_lib.viewer import edit, pick_run
from IPython.display import display
form, picker = edit(PsiParams()), pick_run({str(folder / "runs")!r})
display(form, picker)"""
    write_notebook(folder / "widgets.ipynb", make, "print('IN PYTHON', form.params.steps, picker.directory.parts[-3])")
    page = open_in_lab(visit, lab, "widgets.ipynb", width=1400, height=1000)
    idle = "() => globalThis.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
    page.wait_for_function(idle, timeout=120_000)
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.get_by_text("stage − against", exact=True).first.wait_for(timeout=120_000)
    assert page.get_by_text("Traceback").count() == 0
    steps = page.locator(".widget-hbox", has=page.get_by_text("steps", exact=True)).locator("input")
    steps.fill("many")
    steps.press("Enter")
    page.get_by_role("alert").wait_for()
    picture(page, "lab-form")
    steps.fill("7")
    steps.press("Enter")
    for number, run in enumerate("ab"):
        page.locator("select", has_text="a/seed0/brite").nth(number).select_option(f"{run}/seed0/brite")
    page.get_by_text("differs from the defaults: ").filter(has_text="steps = 7").wait_for()
    page.get_by_text("of one of them only: 1").scroll_into_view_if_needed()
    picture(page, "lab-picker")
    page.evaluate("""() => {
        jupyterapp.shell.currentWidget.content.activeCellIndex = 1;
        jupyterapp.commands.execute('notebook:run-cell');
    }""")
    page.get_by_text("IN PYTHON 7 a").wait_for()
    assert not page.errors and not page.requests_out
    close_without_kernel(page)


@pytest.fixture(scope="module")
def executed(folder, environment):
    """A notebook that papermill ran whole, and one whose kernel was killed after the table was shown."""
    show = SHOW.format(path=str(folder / "rationales.parquet"))
    strange = SHOW.format(path=str(folder / "hostile" / "rationales.parquet"))
    whole = write_notebook(folder / "whole-source.ipynb", show, strange)
    killed = write_notebook(folder / "killed-source.ipynb", show, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert execute(environment, whole, folder / "whole.ipynb").returncode == 0
    assert execute(environment, killed, folder / "killed.ipynb").returncode == 1
    for name in ("whole", "killed"):
        notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        notebook.metadata["trusted copy"] = True  # trust is by content: an equal file would be trusted too
        trusted = folder / f"{name}-trusted.ipynb"
        nbformat.write(notebook, trusted)
        subprocess.run([sys.executable, "-m", "jupyter", "trust", trusted], env=environment, check=True, timeout=120)
    return folder


@pytest.mark.parametrize("name", ["whole", "killed"])
def test_reopened_trusted_the_browser_draws(visit, lab, executed, picture, name):
    page = open_in_lab(visit, lab, f"{name}-trusted.ipynb", width=1400, height=1000)
    viewer = page.locator(".brite-rationales").first
    viewer.locator(".token").first.wait_for()
    viewer.locator(".filter").fill("source:psi")
    page.wait_for_timeout(300)
    assert viewer.locator(".count").inner_text().startswith("12 of 36")
    viewer.locator(".list").focus()
    page.keyboard.press("j")
    page.keyboard.press("d")
    assert viewer.locator(".sides").is_visible()
    picture(page, f"reopened-trusted-{name}")
    assert page.locator("details").count() == 0
    assert page.evaluate("globalThis.ran") is None
    assert not page.errors and not page.requests_out


@pytest.mark.parametrize("name", ["whole", "killed"])
def test_reopened_untrusted_a_static_table_with_heat(visit, lab, executed, picture, name):
    page = open_in_lab(visit, lab, f"{name}.ipynb", width=1400, height=1000)
    page.locator("summary", has_text="36 rationales").click()
    picture(page, f"reopened-untrusted-{name}")
    assert page.locator(".brite-rationales").count() == 0
    first = page.locator("details").first
    assert first.locator("tbody tr").count() == 20
    span = first.locator("td span[title]").first
    assert span.get_attribute("title").startswith("log P_ψ") and "rgba(203, 96, 4" in span.evaluate(
        "span => getComputedStyle(span).backgroundColor"
    )
    if name == "whole":
        page.locator("summary", has_text=f"{len(HOSTILE)} rationales").click()
        assert page.locator("details").nth(1).locator("tbody tr").count() == len(HOSTILE)
    assert page.evaluate("globalThis.ran") is None
    assert not page.errors and not page.requests_out


def test_plain_text_is_in_the_file_too(executed):
    notebook = nbformat.read(executed / "killed.ipynb", as_version=4)
    data = notebook.cells[-2].outputs[0].data if "text/html" in str(notebook.cells[-2].outputs) else notebook.cells[0].outputs[0].data
    assert "▁" in data["text/plain"] and "36 rationales" in data["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" not in data and "widgets" not in notebook.metadata


def test_nbconvert_offline_draws_and_asks_for_nothing(visit, executed, environment, picture):
    empty = write_notebook(executed / "empty.ipynb", "1")
    pages = {}
    for notebook in (executed / "whole.ipynb", empty):
        command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "html", "--log-level=ERROR", str(notebook)]
        subprocess.run(command, env=environment, check=True, timeout=300)
        pages[notebook.stem] = visit(Path(notebook).with_suffix(".html"), width=1400, height=1000, ready=".jp-Cell")
    page = pages["whole"]
    viewer = page.locator(".brite-rationales").first
    viewer.locator(".token").first.wait_for()
    viewer.locator(".list").focus()
    page.keyboard.press("3")
    picture(page, "nbconvert")
    assert page.locator(".brite-rationales").count() == 2
    assert set(page.requests_out) == set(pages["empty"].requests_out)  # nbconvert's own template asks for MathJax and require.js
    assert page.evaluate("globalThis.ran") is None


def test_nbconvert_without_scripts_shows_the_static_table(visit, executed, picture):
    page = visit(executed / "whole.html", ready="summary", java_script_enabled=False)
    page.locator("summary").first.click()
    assert page.locator("details").first.locator("tbody tr").count() == 20
    picture(page, "no-scripts")
