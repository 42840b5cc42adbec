"""Several processes for one stage's training: ``accelerate launch`` as a child of the notebook's kernel (docs/processes.md).

Never a fork: a kernel that has touched CUDA can't be forked. The ranks (:mod:`brite_lib.train`) train to the last step and leave the
last checkpoint; the notebook's own trainer finds it, has nothing left to do, and goes on with the weights.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.commands.config.config_args import load_config_from_file
from torch import nn

from brite_lib.cluster import on_all_nodes
from brite_lib.errors import InputError
from brite_lib.files import atomic_write_text
from brite_lib.params import PROJECT_ROOT, TrainingStageParams, resolve_path
from brite_lib.params.training import read_accelerate_config
from brite_lib.progress import in_jupyter, updating_output

CONFIGS = PROJECT_ROOT / "params/accelerate"
FIRST_RANK = "[default0]:"  # how torch's elastic agent marks the lines of the first rank on this machine
SECONDS_TO_END = 30.0  # for the processes on other machines
SHOWN_LINES = 12  # of the log in JupyterLab


class RankTraceback(Exception):
    """The traceback of a rank, as the cause of the error that its launcher raises."""


def launch(stage: str, params: TrainingStageParams, processes: int, model: nn.Module | None = None) -> float:
    """Train ``stage`` to its last step, in this process for one, else with ``accelerate launch`` in ``processes`` child processes.

    What is left is the last checkpoint in the stage's directory, its ``metrics.jsonl``, and ``ranks/`` with each rank's log.

    Args:
        stage: kind of the stage, one of ``brite_lib.train.TRAINERS``.
        params: its parameters; with an ``accelerate_config`` of its own one process is started in the same way.
        processes: over all machines; see :func:`number_of_processes`.
        model: of this process, to be moved from its GPU to the CPU meanwhile.

    Returns:
        the seconds that it took.

    Raises:
        InputError: one sentence, if the port is busy, or if a rank says so.
        RuntimeError: if a rank failed; it names the rank and its log, and its cause is the rank's own traceback.
    """
    started = time.monotonic()
    if processes == 1 and params.accelerate_config == "auto":
        from brite_lib.train import train

        with _on_cpu(model):
            train(stage, params)
        return time.monotonic() - started
    directory = PROJECT_ROOT / Path(params.output_dir).expanduser() / "ranks"
    shutil.rmtree(directory, ignore_errors=True)
    atomic_write_text(directory / "params.json", params.model_dump_json())
    command = _command(stage, params, processes, directory)
    with _on_cpu(model), _running(command, _environment(params)) as agent, _shown() as show:
        show(f"{processes} process{'es' * (processes > 1)} of accelerate launch; their logs: {directory}")
        for line in agent.stdout:
            if line.startswith(FIRST_RANK) and not line.startswith(f"{FIRST_RANK}[rank"):  # nor tracebacks, which may be another's fault
                show(line.removeprefix(FIRST_RANK).rstrip())
            else:
                with (directory / "agent.log").open("a", encoding="utf-8") as log:
                    log.write(line)
        status = agent.wait()
    if status:
        raise _failure(directory, processes)
    return time.monotonic() - started


def number_of_processes(params: TrainingStageParams) -> int:
    """How many processes ``params.processes`` means here, over all machines; ``auto`` is one per GPU found, and one without any.

    Raises:
        InputError: one sentence, if there are fewer GPUs (on a CPU: cores) or they can't share the work.
    """
    if params.processes != 1 and params.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"processes: more than one needs device auto, cpu or cuda, not {params.device}")
    _, settings = accelerate_config(params)
    machines, on_cpu = settings.get("num_machines", 1), settings.get("use_cpu", False)
    found = machines * (os.cpu_count() if on_cpu else torch.cuda.device_count())
    processes = params.processes
    if processes == "auto":
        processes = 1 if on_cpu else max(1, found)
        try:
            params.check_shares(processes)
        except ValueError as error:
            raise InputError(f"processes: auto means {processes} here: {error}") from None
    if processes > max(1, found):
        where = f" on {machines} machines" if machines > 1 else ""
        raise InputError(f"processes: {processes} are more than the {found} {'cores' if on_cpu else 'GPUs'} found{where}")
    return processes


def accelerate_config(params: TrainingStageParams) -> tuple[Path, dict[str, Any]]:
    """The file for ``accelerate launch`` and its settings; ``auto`` is ddp.yaml where the stage uses GPUs, else cpu2.yaml.

    Raises:
        InputError: one sentence, if accelerate does not know what the file says.
    """
    path = CONFIGS / ("ddp.yaml" if params.device != "cpu" and torch.cuda.is_available() else "cpu2.yaml")
    if params.accelerate_config != "auto":
        path = resolve_path(params.accelerate_config)
    settings = read_accelerate_config(path)
    try:
        load_config_from_file(str(path))
    except (ValueError, TypeError) as error:
        raise InputError(f"accelerate_config: {path}: {' '.join(str(error).split())}") from None
    return path, settings


def _command(stage: str, params: TrainingStageParams, processes: int, directory: Path) -> list[str]:
    path, settings = accelerate_config(params)
    options = {"config_file": path, "num_processes": processes, "main_process_port": _port(settings), "tee": 3, "log_dir": directory}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    agent = [sys.executable, "-m", "accelerate.commands.launch", *flags]
    job = ["-m", "brite_lib.train", stage, str(directory / "params.json")]
    machines = settings.get("num_machines", 1)
    return on_all_nodes(agent, job, machines) if machines > 1 and "SLURM_JOB_ID" in os.environ else [*agent, *job]


def _port(settings: dict[str, Any]) -> int:
    """Where the ranks meet: as the configuration or ``MASTER_PORT`` says, else a free one (0: accelerate chooses just before it binds).

    Raises:
        InputError: if another process listens there.
    """
    given = settings.get("main_process_port") or int(os.environ.get("MASTER_PORT", 0))
    several = settings.get("num_machines", 1) > 1  # all of which have to know it
    if (several and settings.get("machine_rank", 0) > 0) or not (several or given):
        return given
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", given))
        except OSError:
            name = "main_process_port of accelerate_config" if settings.get("main_process_port") else "MASTER_PORT"
            raise InputError(f"{name}: port {given} is in use; choose another one, or none for a free one") from None
        return listener.getsockname()[1]


def _environment(params: TrainingStageParams) -> dict[str, str]:
    """This process's, and what the ranks need to find the library, to end with this process and to print lines, not bars."""
    _, settings = accelerate_config(params)
    paths = [str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "BRITE_LAUNCHER_PID": str(os.getpid()),
        **os.environ,
        "BRITE_BATCH": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' own too
        "OMP_NUM_THREADS": str(max(1, params.threads)),
        "ACCELERATE_USE_CPU": str(settings.get("use_cpu", False)).lower(),
    }


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """The agent that starts and watches the ranks; all of them are gone when the block ends, however it ends."""
    agent = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # an interrupt of the notebook comes here, which ends them in order
    )
    try:
        yield agent
    finally:
        if command[0] == "srun":  # which ends what it started on other machines, if it is asked
            agent.terminate()
            with suppress(subprocess.TimeoutExpired):
                agent.wait(SECONDS_TO_END)
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(agent.pid)
            for process in [family, *family.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        agent.wait()
        agent.stdout.close()


@contextmanager
def _on_cpu(model: nn.Module | None) -> Iterator[None]:
    """Keep a model off its GPU: the first rank trains there."""
    device = next(model.parameters()).device if model is not None else torch.device("cpu")
    if device.type != "cuda":
        yield
        return
    model.to("cpu")
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        model.to(device)


@contextmanager
def _shown() -> Iterator[Any]:
    """A function that shows a line of the log: in JupyterLab one output with the latest lines, elsewhere print."""
    if not in_jupyter():
        yield lambda line: print(line, flush=True)
        return
    lines, update = deque(maxlen=SHOWN_LINES), updating_output()

    def show(line: str) -> None:
        lines.append(line)
        update(f"<pre>{escape(chr(10).join(lines))}</pre>")

    yield show


def _failure(directory: Path, processes: int) -> Exception:
    """What to raise: of the rank that failed first, as the others fail because of it."""
    errors = []
    for path in directory.glob("*/attempt_*/*/error.json"):
        with suppress(ValueError, KeyError, TypeError):  # torn, as its rank was killed
            message = json.loads(path.read_text(encoding="utf-8"))["message"]
            errors.append((path.stat().st_mtime_ns, path, message["extraInfo"]["py_callstack"], message["message"]))
    if not errors:
        return _without_a_word(directory / "agent.log", processes)
    _, path, traceback, message = min(errors)
    place = f"rank {path.parent.name} of {processes}"
    log = path.with_name("stderr.log")
    if message.startswith("InputError: "):
        return InputError(f"{message.removeprefix('InputError: ')} ({place}, {log})")
    error = RuntimeError(f"{place}: {traceback.strip().splitlines()[-1]} (log: {log})")
    error.__cause__ = RankTraceback(f"\n{traceback}")
    return error


def _without_a_word(log: Path, processes: int) -> RuntimeError:
    """What to raise when no rank said why: one was killed, or none was started."""
    text = log.read_text(encoding="utf-8").strip() if log.is_file() else ""
    if not (first := re.search(r"Root Cause.*?rank +: (\d+).*?exitcode +: (-?\d+)", text, re.DOTALL)):
        return RuntimeError(f"accelerate launch failed: {text.splitlines()[-1] if text else 'it said nothing'} (log: {log})")
    rank, code = first.groups()
    hint = ", killed: was there too little memory?" if code == "-9" else ""
    return RuntimeError(f"rank {rank} of {processes} ended with exit code {code}{hint} (logs: {log.parent})")
