"""A real Chromium, driven by Playwright. A missing tool fails here, it never skips: `make test-browser` installs what is needed."""

import shutil
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from playwright.sync_api import sync_playwright

from brite_lib.params import PROJECT_ROOT
from brite_lib.viewer import to_html

ARTEFACTS = PROJECT_ROOT / "outputs" / "browser"


def tool(name: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} is not installed: run `make test-browser` as root, or install Debian's package {name}"
    return path


@pytest.fixture(scope="session")
def chromium():
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    flags = ["--no-sandbox", "--enable-precise-memory-info"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=tool("chromium"), args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open an address: visit(url, width, height, theme, local) → page with .errors (scripts that failed) and .requests (that left).

    What goes to another host than ``local`` is not let out, and noted.
    """
    contexts = []

    def open_page(url, width=1280, height=800, theme="light", local=None, ready=".line", **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=theme, accept_downloads=True, **options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.errors, page.requests_out = [], []

        def guard(route):
            if route.request.url.startswith(("file:", "data:", "blob:", *([local] if local else []))):
                return route.continue_()
            page.requests_out.append(route.request.url)
            return route.abort()

        context.route("**", guard)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(url.as_uri() if isinstance(url, Path) else url)
        if ready:
            page.locator(ready).first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def browse(visit, tmp_path):
    """Write rows as a page and open it, whole."""

    def open_table(rows, title="Rationales", wait=".token", **options):
        page = visit(to_html(rows, tmp_path / "rationales.html", title=title), **options)
        if wait:
            page.locator(wait).first.wait_for()
        return page

    return open_table


@pytest.fixture
def picture():
    """picture(page, name): a screenshot kept in outputs/browser."""
    return lambda page, name: page.screenshot(path=ARTEFACTS / f"{name}.png")


def npm_file(folder: Path, package: str, member: str) -> Path:
    """A file of an npm package; fetched, never committed."""
    found = subprocess.run([tool("npm"), "pack", "--silent", package], cwd=folder, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    with tarfile.open(folder / found.stdout.split()[-1]) as archive:
        archive.extractall(folder / package, filter="data")
    return folder / package / "package" / member


@pytest.fixture(scope="session")
def axe_source(tmp_path_factory):
    return npm_file(tmp_path_factory.mktemp("npm"), "axe-core@4.14.1", "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def mathjax(tmp_path_factory):
    return npm_file(tmp_path_factory.mktemp("npm"), "mathjax@3.2.2", "es5/tex-chtml.js")


@pytest.fixture
def serious(axe_source):
    """serious(page): what axe-core calls serious or critical, one line each."""

    def check(page):
        page.evaluate(f"() => {{ {axe_source} }}") if not page.evaluate("() => 'axe' in globalThis") else None
        found = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
        return [
            SimpleNamespace(rule=one["id"], where=[node["target"] for node in one["nodes"][:3]], text=one["nodes"][0]["failureSummary"])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]

    return check
