"""Real processes: when any process of a tree is killed, everything below it ends, and only that."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from brite_lib.lifeline import end_processes, is_alive

# Each generation writes its pid and starts the next in a new session, as Jupyter starts kernels.
GENERATION = """
import os, subprocess, sys, time
from pathlib import Path
from brite_lib.lifeline import die_with_ancestors

folder, names = Path(sys.argv[1]), sys.argv[2:]
if names[0] == "launcher":
    os.environ["BRITE_LAUNCHER_PID"] = str(os.getpid())
die_with_ancestors()
if names[1:]:
    subprocess.Popen([sys.executable, __file__, str(folder), *names[1:]], start_new_session=True)
(folder / names[0]).write_text(str(os.getpid()))
time.sleep(60)
"""
NAMES = ["outsider", "launcher", "child", "grandchild"]


@pytest.fixture
def tree(tmp_path):
    """outsider -> launcher -> child -> grandchild, by name."""
    script = tmp_path / "generation.py"
    script.write_text(GENERATION)
    environment = {name: value for name, value in os.environ.items() if name != "BRITE_LAUNCHER_PID"}
    popen = subprocess.Popen([sys.executable, script, tmp_path, *NAMES], env=environment)
    deadline = time.monotonic() + 20
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in NAMES):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes = {name: psutil.Process(int((tmp_path / name).read_text())) for name in NAMES}
    time.sleep(0.3)  # the last generation's watch has begun
    yield processes
    for process in processes.values():
        if is_alive(process):
            process.kill()
    popen.wait()


@pytest.mark.parametrize(
    ("killed", "survivors"),
    [
        ("launcher", {"outsider"}),
        ("child", {"outsider", "launcher"}),
        ("grandchild", {"outsider", "launcher", "child"}),
        ("outsider", {"launcher", "child", "grandchild"}),  # above the launcher nobody is watched: `nohup make run` goes on
    ],
)
def test_nothing_below_a_killed_process_survives(tree, killed, survivors):
    tree[killed].kill()
    deadline = time.monotonic() + 10
    expected = set(NAMES) - survivors
    while {name for name in NAMES if not is_alive(tree[name])} != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.2)  # two polls: the survivors are not about to end
    assert {name for name in NAMES if is_alive(tree[name])} == survivors


def test_a_process_whose_launcher_is_no_ancestor_ends_at_once():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = "import time; from brite_lib.lifeline import die_with_ancestors; die_with_ancestors(); time.sleep(60)"
    environment = os.environ | {"BRITE_LAUNCHER_PID": str(gone.pid)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=20).returncode == 1


def test_outside_a_run_nothing_is_watched():
    code = "import threading; from brite_lib.lifeline import die_with_ancestors; die_with_ancestors(); print(threading.active_count())"
    environment = {name: value for name, value in os.environ.items() if name != "BRITE_LAUNCHER_PID"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout == "1\n"


def test_end_processes_ends_one_run_and_no_other(tmp_path):
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    mine, other = (
        subprocess.Popen(sleeper, env=os.environ | {"BRITE_RUN_DIR": str(tmp_path / name)}, start_new_session=True) for name in "ab"
    )
    try:
        time.sleep(0.2)
        end_processes(tmp_path / "a")
        assert mine.poll() is not None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
