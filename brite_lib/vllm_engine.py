"""vLLM for offline sampling (``engine: vllm``): engines in child processes that live as long as a ``with`` block.

A process of its own (:mod:`brite_lib.vllm_worker`) is the one sure way to get a GPU's memory back, and it keeps vLLM's settings
and threads out of the notebook's kernel. With several GPUs there is one engine on each, and each samples its share of the prompts.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple, Self

from brite_lib import costs
from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT, check_engine
from brite_lib.progress import progress

SCRATCH = "vllm-"  # how names of temporary directories begin
SECONDS_TO_END = 10.0  # an engine has to end by itself; then it is killed
OF_A_RANK = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # an engine is none, whoever starts it


class Drawn(NamedTuple):
    """Sampled tokens and their natural-log probabilities under the model itself (temperature 1), one list per prompt."""

    ids: list[list[int]]
    log_probs: list[list[float]] | None  # None: not known


class VllmEngine:
    """One vLLM engine per device on the same model; use it as a context manager.

    Args:
        model: directory of the model.
        adapter: directory of a PEFT LoRA adapter to run on top of it, unmerged.
        dtype: as in :func:`brite_lib.models.load_policy`.
        devices: what each engine may see as ``CUDA_VISIBLE_DEVICES``; None is the CPU. See :func:`visible_devices`.
        directory: where ``vllm.log`` is kept and scratch files go; None: the system's, and the log stays only after an error.
        cost: of the model, to count what it computes (:mod:`brite_lib.costs`); None: nothing is counted.
        memory: share of each GPU that its engine may take; None: nine tenths of what is free when it starts.
        sleeps: it can :meth:`sleep`; GPUs only.

    Raises:
        InputError: on entering, if vLLM is not installed or can't run this model; the log has the traceback.
    """

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        dtype: str = "auto",
        devices: Sequence[str | None] = (None,),
        directory: str | Path | None = None,
        cost: costs.ModelCost | None = None,
        memory: float | None = None,
        sleeps: bool = False,
    ):
        self.max_length = 0  # of prompt and completion together, known once the engine runs
        self._settings = {"model": os.path.abspath(model), "adapter": adapter and os.path.abspath(adapter), "dtype": dtype}
        self._settings |= {"memory": memory, "sleeps": sleeps}
        self._devices, self._directory, self._cost = devices, directory, cost
        self._workers: list[_Worker] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        check_engine("vllm")
        with self._stack as stack:
            if self._directory is None:
                handle, log = tempfile.mkstemp(prefix="brite-vllm-", suffix=".log")
                os.close(handle)
                stack.push(lambda kind, *_: Path(log).unlink() if kind is None else None)  # after an error it is read
            else:
                log = os.path.join(self._directory, "vllm.log")
                Path(log).write_bytes(b"")
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=SCRATCH, dir=self._directory))
            self._workers = [stack.enter_context(_Worker(device, log)) for device in self._devices]
            for place, worker in enumerate(self._workers):
                worker.send({**self._settings, "scratch": os.path.join(scratch, str(place))})
            self.max_length = min(worker.receive("start") for worker in self._workers)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        self._workers = []

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        stop_ids: Sequence[int],
        temperature: float,
        max_new_tokens: int,
        desc: str | None = "sampling",
    ) -> Drawn:
        """One completion per prompt, through its stop token (or the limit), in the order of the prompts.

        Args:
            prompts: token ids; samples of the same prompt should stand together, so that its prefix is computed once.
            seeds: one per prompt. The same seeds give the same tokens again, but not those of ``engine: hf``, whose noise differs.
            temperature: 0 decodes greedily.
            desc: in front of the progress; None: it is not shown.

        Raises:
            InputError: if a prompt and its completion could be longer than the model can be.
            RuntimeError: if an engine fails or dies; all of them end.
        """
        longest = max(map(len, prompts), default=0)
        if longest + max_new_tokens > self.max_length:
            raise InputError(
                f"engine: vllm: a prompt of {longest} tokens and {max_new_tokens} new ones are more than the {self.max_length} that this "
                "model, or the memory for its KV cache, has room for"
            )
        places = shares(len(prompts), len(self._workers))
        fixed = {"stop_ids": list(stop_ids), "temperature": temperature, "max_new_tokens": max_new_tokens}
        drawn: dict[_Worker, Drawn] = {}
        with self._whole():
            for worker, place in zip(self._workers, places, strict=True):
                worker.send(("sample", {"prompts": prompts[place], "seeds": seeds[place], **fixed}))
            finished = self._finished(drawn)
            for _ in finished if desc is None else progress(finished, total=len(prompts), desc=desc):
                pass
        parts = [drawn[worker] for worker in self._workers]
        ids = [row for part in parts for row in part.ids]
        if self._cost:
            costs.add(self._cost.sampling([len(prompt) for prompt in prompts], [len(row) for row in ids]))
        return Drawn(ids, [row for part in parts for row in part.log_probs])

    def load(self, directory: str | Path) -> None:
        """Sample from another adapter from now on, or, where the engine has none, from other weights of the same model.

        Args:
            directory: as ``adapter``, or as ``model``; no longer read when this returns.

        Raises:
            RuntimeError: as :meth:`sample`.
        """
        self._tell("load", {"directory": os.path.abspath(directory)})

    def sleep(self) -> None:
        """Free the GPUs' memory until :meth:`load`, which must come before the next sample.

        Raises:
            RuntimeError: as :meth:`sample`.
        """
        self._tell("sleep", {})

    def _tell(self, job: str, arguments: dict[str, Any]) -> None:
        with self._whole():
            for worker in self._workers:
                worker.send((job, arguments))
            for worker in self._workers:
                worker.receive(job)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """All engines end on an error, an interrupt too: in the middle of something they are of no use."""
        try:
            yield
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise

    def _finished(self, drawn: dict["_Worker", Drawn]) -> Iterator[None]:
        """Once for every completion that has ended; fills ``drawn``."""
        waiting = {worker.connection: worker for worker in self._workers}
        while waiting:
            for connection in wait(list(waiting)):
                answer = waiting[connection].receive("sample")
                if isinstance(answer, int):
                    yield from [None] * answer
                else:
                    drawn[waiting.pop(connection)] = Drawn(*answer)


def visible_devices(device: str) -> list[str | None]:
    """A value of ``CUDA_VISIBLE_DEVICES`` per engine: every GPU, or the one that ``device`` names, or [None] for the CPU."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return [names[int(device.removeprefix("cuda:"))]] if device.startswith("cuda:") else list(names)


def shares(count: int, workers: int) -> list[slice]:
    """``count`` rows as consecutive slices, one per worker, that differ by one row at the most."""
    ends = [count * (i + 1) // workers for i in range(workers)]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class _Worker:
    """A child process with one engine, and the connection to it."""

    def __init__(self, device: str | None, log: str):
        self.log = log
        from brite_lib import vllm_worker

        self.connection, theirs = Pipe()
        with theirs, open(log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", vllm_worker.__name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=PROJECT_ROOT,
                env=_environment(device),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # an interrupt of the notebook is the notebook's
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.send(None)
        self.connection.close()
        try:
            self.process.wait(0 if error[0] else SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # its session: it and its children
            self.process.wait()

    def send(self, message: Any) -> None:
        """Send it; that the worker is dead, :meth:`receive` will say."""
        with suppress(OSError):
            self.connection.send(message)

    def receive(self, what: str) -> Any:
        """The worker's next message.

        Raises:
            InputError: the engine failed to start.
            RuntimeError: it failed or died later.
        """
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            ended = f"was killed by {signal.Signals(-code).name} (out of memory?)" if code < 0 else f"ended with code {code}"
            kind, value = "error", f"its process {ended}"
        if kind == "error":
            raise (InputError if what == "start" else RuntimeError)(f"engine: vllm could not {what}: {value}; see {self.log}")
        return value


def _environment(device: str | None) -> dict[str, str]:
    fixed = {
        "BRITE_LAUNCHER_PID": os.environ.get("BRITE_LAUNCHER_PID", str(os.getpid())),  # it dies with this process
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no further process below the worker, and a schedule that repeats
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_LOGGING_LEVEL": "INFO",  # TRL turns it down for the whole process
        "HF_HUB_OFFLINE": "1",  # the model is a directory
    }
    own = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
    if device is not None:
        return own | fixed | {"CUDA_VISIBLE_DEVICES": device}
    import torch

    defaults = {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB, taken at once
    fixed |= {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # the stage's parameter threads
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else several engines, or stages, would all be tied to the first cores
        "TORCH_COMPILE_DISABLE": "1",  # it needs a C++ compiler, and pays in hours only
    }
    return defaults | own | fixed
