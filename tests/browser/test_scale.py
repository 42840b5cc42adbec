"""Twenty thousand rationales of 300 tokens: how long, how large. What was measured is printed and kept in outputs/browser.

Wall-clock times are reported; what is asserted is the processor time of the page's main thread, which other jobs do not stretch so much.
"""

import json
import time

import psutil
import pytest
from conftest import ARTEFACTS
from example_tables import of_any_size

from brite_lib.viewer.pack import pack
from brite_lib.viewer.page import write_page
from brite_lib.viewer.table import read_rows

MEASURED = {}
SLACK = 2  # of processor time, for slower processors
FILTER = """async (query) => {
    const root = document.querySelector(".brite-rationales").shadowRoot;
    const [input, count] = [root.querySelector(".filter"), root.querySelector(".count")];
    const drawn = new Promise((done) => new MutationObserver((_, observer) => (observer.disconnect(), requestAnimationFrame(() => setTimeout(done)))).observe(count, {childList: true, characterData: true, subtree: true}));
    const start = performance.now();
    input.value = query;
    input.dispatchEvent(new Event("input"));
    await drawn;
    return performance.now() - start;
}"""  # noqa: E501


@pytest.fixture(scope="module")
def large():
    return read_rows(of_any_size(channels=4))


class MainThread:
    """Processor seconds of a page's main thread."""

    def __init__(self, page):
        self.session = page.context.new_cdp_session(page)
        self.session.send("Performance.setTimeDomain", {"timeDomain": "threadTicks"})
        self.session.send("Performance.enable")

    def seconds(self):
        metrics = {one["name"]: one["value"] for one in self.session.send("Performance.getMetrics")["metrics"]}
        return metrics["TaskDuration"]


@pytest.mark.parametrize(("channels", "limit"), [(2, 30), (4, 45)])
def test_twenty_thousand_rationales(large, visit, tmp_path, channels, limit):
    packed = pack(large if channels == 4 else large.drop_columns(["advantage", "value"]))
    path = write_page(packed, tmp_path / "rationales.html", "20,000 rationales")
    megabytes = path.stat().st_size / 1e6
    assert packed.note == "" and megabytes <= limit

    page = visit("about:blank", ready=None)
    thread, start = MainThread(page), time.monotonic()
    page.goto(path.as_uri(), wait_until="commit")
    page.locator(".row").first.wait_for()
    first, first_work = time.monotonic() - start, thread.seconds()
    page.locator(".token").first.wait_for()
    whole = time.monotonic() - start
    page.wait_for_timeout(8000)  # the index of texts is built in the background
    filters = {}
    for query in ("correct:false len>200 kl>2", 'text:"w1f3"', "w2a source:psi", "-correct:true elbo<-10", ""):
        before = thread.seconds()
        wall = page.evaluate(FILTER, query)
        filters[query] = {"wall ms": round(wall), "processor ms": round(1000 * (thread.seconds() - before))}
    memory = renderer_memory()
    assert page.evaluate("document.querySelector('.brite-rationales').shadowRoot.querySelectorAll('.line').length") < 60
    MEASURED[f"{channels} channels"] = {
        "file MB": round(megabytes, 1), "first rows s": round(first, 2), "first rows processor s": round(first_work, 2),
        "tokens s": round(whole, 2), "filter": filters, "renderer memory MB": round(memory),
        "load average": psutil.getloadavg()[0], "cores": psutil.cpu_count(),
    }  # fmt: skip
    print(json.dumps(MEASURED, indent=1))
    (ARTEFACTS / "scale.json").write_text(json.dumps(MEASURED, indent=1), encoding="utf-8")
    assert memory < 500
    assert first_work < 2 * SLACK
    assert max(one["processor ms"] for one in filters.values()) < 200 * SLACK
    assert not page.errors and not page.requests_out


def renderer_memory():
    """Resident megabytes of the largest page of this Chromium."""
    pages = [process for process in psutil.Process().children(recursive=True) if "--type=renderer" in process.cmdline()]
    return max(process.memory_info().rss for process in pages) / 1e6


def test_a_table_that_is_too_large_is_sampled_and_the_page_says_so(visit, tmp_path):
    packed = pack(read_rows(of_any_size(rows=4000)), max_mb=2)
    path = write_page(packed, tmp_path / "rationales.html", "sampled")
    page = visit(path)
    note = page.locator(".note-line").inner_text()
    assert note == packed.note and "of 500 problems" in note
    assert path.stat().st_size < 2.5e6  # with the static table and the script
    assert page.locator(".count").inner_text().startswith(f"{packed.table.num_rows:,} rationales")
