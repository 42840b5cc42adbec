"""A running ψ-update to look at: one output in JupyterLab that updates in place, a line every few seconds under papermill.

``with live.shown(trainer, validation): psi = trainer.train()``. Nothing here touches the training: the validation answers have seeds
of their own, are no cost of the method and are not logged.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from itertools import islice
from typing import Any

from brite_lib import costs
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.progress import in_jupyter, pause, updating_output
from brite_lib.rollouts import generate

SECONDS_BETWEEN_PICTURES = 1.0
VALIDATIONS, VALIDATION_PROBLEMS = 10, 50  # of a run, at the most
SHOWN = ("elbo", "kl", "entropy", "rationale_length", "finished", "explained_variance")
WIDTH, HEIGHT, SCALE = 150, 44, 40  # of a curve and of the numbers beside it, px
CSS = """
.brite-live{font:12px/1.45 system-ui,sans-serif;max-width:76em}
.brite-live .curves{display:grid;grid-template-columns:repeat(auto-fill,210px);gap:8px 18px;margin:6px 0}
.brite-live figure{margin:0}
.brite-live figcaption{opacity:.75}
.brite-live figcaption b{opacity:1;font-variant-numeric:tabular-nums;float:right;margin-left:1em}
.brite-live svg text{font-size:9px;fill:currentColor;opacity:.75}
.brite-live table.batch{font:inherit}
.brite-live table.batch :is(th,td){text-align:left;vertical-align:top;padding:2px 12px 2px 0}
.brite-live table.batch th{opacity:.75;font-weight:normal}
.brite-live table.batch td{overflow-wrap:anywhere;white-space:pre-wrap}
.brite-live table.batch td:first-child{white-space:nowrap;font-variant-numeric:tabular-nums}
"""


@contextmanager
def shown(trainer: PosteriorPPOTrainer, validation: Sequence[dict[str, Any]] = ()) -> Iterator[None]:
    """Show the steps that ``trainer`` makes in the ``with`` block.

    Args:
        trainer: its ``log`` goes on as before.
        validation: problems of which the first 50 are answered now and then (JupyterLab only: it takes time).
    """
    log, view = trainer.log, _Picture(trainer, validation) if in_jupyter() else _Lines(trainer)

    def both(step: int, **metrics: float) -> None:
        log(step, **metrics)
        view(step, metrics)

    trainer.log = both
    try:
        yield
    finally:
        trainer.log = log


class _Lines:
    """The latest metrics every few seconds, for a log."""

    def __init__(self, trainer: PosteriorPPOTrainer):
        self.trainer, self.start, self.last = trainer, time.monotonic(), time.monotonic()

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self.last < pause(now - self.start) and step < self.trainer.config.steps:
            return
        self.last = now
        values = {name: metrics[name] for name in _names(self.trainer) if name in metrics}
        print(f"step {step}/{self.trainer.config.steps}", *(f"{name} {value:.3g}" for name, value in values.items()), sep="  ", flush=True)


class _Picture:
    """Curves of all steps, the share of right validation answers, and three rationales of the latest batch."""

    def __init__(self, trainer: PosteriorPPOTrainer, validation: Sequence[dict[str, Any]]):
        self.trainer, self.validation = trainer, list(islice(validation, VALIDATION_PROBLEMS))
        self.curves: dict[str, list[tuple[int, float]]] = {name: [] for name in (*_names(trainer), "validation accuracy")}
        self.last, self.show = 0.0, updating_output()
        if self.validation and trainer.step == 0:  # θ itself, to compare with
            self.curves["validation accuracy"].append((0, self._accuracy()))

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        steps = self.trainer.config.steps
        for name in self.curves.keys() & metrics.keys():
            self.curves[name].append((step, metrics[name]))
        if self.validation and (step % max(1, steps // VALIDATIONS) == 0 or step == steps):
            self.curves["validation accuracy"].append((step, self._accuracy()))
        if time.monotonic() - self.last >= SECONDS_BETWEEN_PICTURES or step == steps:
            self.show(self._html(step))
            self.last = time.monotonic()

    @costs.not_counted()
    def _accuracy(self) -> float:
        config = self.trainer.config
        options = {**config.generation, "seed": config.seed, "source": "validation"}
        rows = generate(self.trainer.model, self.validation, self.trainer.template, 1, **options)
        return sum(row["correct"] is True for row in rows) / len(rows)

    def _html(self, step: int) -> str:
        curves = "".join(_curve(name, points, self.trainer.config.steps) for name, points in self.curves.items() if points)
        batch = self.trainer.latest
        count = min(3, len(batch.completions))
        rows = [i * len(batch.completions) // count for i in range(count)]  # of different problems
        samples = "".join(
            f"<tr><td>{batch.terminal[i]:.2f}</td><td>{escape(batch.problems[i]['question'])}</td>"
            f"<td>{escape(batch.completions[i].rationale)}</td></tr>"
            for i in rows
        )
        return (
            f'<style>{CSS}</style><div class="brite-live" role="group" aria-label="ψ-update, step {step}">'
            f"<b>step {step} of {self.trainer.config.steps}</b><div class=curves>{curves}</div>"
            "<table class=batch><thead><tr><th>reward</th><th>question</th><th>rationale of this batch</th></tr></thead>"
            f"{samples}</table></div>"
        )


def _names(trainer: PosteriorPPOTrainer) -> tuple[str, ...]:
    return (f"reward/{trainer.reward.metric}", *SHOWN)


def _curve(name: str, points: list[tuple[int, float]], steps: int) -> str:
    """One metric as a small SVG line over the whole length of the run; no library draws faster than a step takes."""
    values = [value for _, value in points if value == value]  # nan where no rationale was finished
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    span = (high - low) or 1.0
    path = " ".join(f"{WIDTH * x / steps:.1f},{HEIGHT - 3 - (HEIGHT - 6) * (y - low) / span:.1f}" for x, y in points if y == y)
    latest, spread = f"{points[-1][1]:.3g}", f"from {low:.3g} to {high:.3g}"
    return (
        f"<figure><figcaption>{escape(name)} <b>{latest}</b></figcaption>"
        f'<svg width="{WIDTH + SCALE}" height="{HEIGHT}" role="img" aria-label="{escape(name)}, now {latest}, {spread}">'
        f'<text x="{WIDTH + 4}" y="10">{high:.3g}</text><text x="{WIDTH + 4}" y="{HEIGHT - 3}">{low:.3g}</text>'
        f'<line x1="0" x2="{WIDTH}" y1="{HEIGHT - 1}" y2="{HEIGHT - 1}" stroke="currentColor" opacity=".25"/>'
        f'<polyline points="{path}" fill="none" stroke="#0173b2" stroke-width="1.5"/></svg></figure>'
    )
