"""What no machine without a GPU can show, in one command of a few minutes (``make gpu-check``, docs/gpu.md).

Every check runs whatever became of the others. ``results.json`` is written anew after each, so a time limit that ends the run
leaves what was done.
"""

import argparse
import gc
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from brite_lib.errors import InputError
from brite_lib.files import atomic_write_text
from brite_lib.gpu_check.checks import CHECKS, EMBEDDED, SMALL, Outcome, Setup, Size, peak_gib, reset_peak
from brite_lib.models import load_template
from brite_lib.params import PROJECT_ROOT
from brite_lib.records import for_json, git_commit, readable

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "pydantic", "numpy", "pyarrow", "tokenizers", "vllm")


def run_check(check: Callable[[Setup], Outcome | None], setup: Setup) -> dict[str, Any]:
    """The entry of one check in ``results.json``: its status, numbers, unmet requirements or error, seconds and peak GPU memory."""
    reset_peak(setup.device)
    started = time.perf_counter()
    entry: dict[str, Any] = {"status": "failed", "failures": [], "numbers": {}}
    try:
        outcome = check(setup)
    except Exception as error:  # whatever it is, the other checks are to run
        entry["failures"] = [f"{type(error).__name__}: {error}"]
    else:
        if outcome is None:
            entry["status"] = "not importable"
        else:
            entry["numbers"] = for_json(outcome.numbers)
            entry["failures"] = [sentence for sentence, fulfilled in outcome.requirements.items() if not fulfilled]
            entry["status"] = "failed" if entry["failures"] else "passed"
    return entry | {"seconds": round(time.perf_counter() - started, 1), "peak_gpu_gib": peak_gib(setup.device)}


def find_device(name: str) -> torch.device:
    """The CPU, or the one GPU that torch sees.

    Raises:
        InputError: if it sees none, or several: trainers would then use all of them.
    """
    if name == "cuda" and (found := torch.cuda.device_count()) != 1:
        advice = "choose one: CUDA_VISIBLE_DEVICES=0" if found else "--device cpu --small tries the checks without one"
        raise InputError(f"device: torch finds {found} GPUs here, and one is checked; {advice}")
    return torch.device(name)


def machine(device: torch.device) -> dict[str, Any]:
    """Card, driver and versions."""
    card = driver = memory = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card, memory = properties.name, properties.total_memory / 2**30
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            driver = None
    found = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions() if dist.metadata["Name"]}
    return {
        "device": str(device),
        "card": card,
        "gpu_memory_gib": memory,
        "driver": driver,
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **{name: found.get(name) for name in PACKAGES}},
    }


def table(results: dict[str, Any]) -> str:
    """``results.json`` as Markdown, for docs/results/gpu.md."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version)
    lines = [
        f"{results['card'] or results['device']}, driver {results['driver'] or '–'}, {results['dtype']}"
        f"{', --small' if results['small'] else ''}, commit {results['git_commit'] or 'unknown'}; {versions}",
        "",
        "| check | result | seconds | peak GPU memory, GiB | numbers |",
        "|---|---|---|---|---|",
    ]
    for name, entry in results["checks"].items():
        said = [f"{what}: {readable(value)}" for what, value in entry["numbers"].items()]
        said += [f"**not met**: {failure}" for failure in entry["failures"]]
        text = "; ".join(said).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {name} | {entry['status']} | {entry['seconds']} | {readable(entry['peak_gpu_gib'])} | {text} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks; 1 if one failed.

    Raises:
        InputError: without the device that was asked for.
    """
    parser = argparse.ArgumentParser(prog="python -m brite_lib.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a trial of the checks themselves")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU; the numbers mean nothing")
    parser.add_argument("--output", default="outputs/gpu-check/results.json", help="where results.json goes, from the project root")
    parser.add_argument("--commit", help="the code's commit, for a copy without its .git")
    options = parser.parse_args(arguments)
    device = find_device(options.device)
    results = {
        "dtype": options.dtype,
        "small": options.small,
        "git_commit": options.commit or git_commit(),
        **machine(device),
        "checks": {},
    }
    path, size = PROJECT_ROOT / options.output, SMALL if options.small else Size()
    for name, check in CHECKS.items():
        print(f"== {name}: {check.__doc__.splitlines()[0]}", flush=True)
        with TemporaryDirectory(prefix="gpu-check-") as scratch:
            results["checks"][name] = run_check(check, Setup(device, options.dtype, size, load_template(EMBEDDED), Path(scratch)))
        print(f"   {results['checks'][name]['status']}", flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        atomic_write_text(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(f"\n{table(results)}\n\n{path}")
    return int(any(entry["status"] == "failed" for entry in results["checks"].values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
