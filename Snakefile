# The DAG of one experiment. Started by `make run EXPERIMENT=params/x.yaml` (brite_lib/run.py), in outputs/<run>.
import os
import re
import sys
from contextlib import chdir

from brite_lib.cluster import asked_for
from brite_lib.fingerprint import code_fingerprint
from brite_lib.params import ReportParams, load_experiment
from brite_lib.stages import PROJECT_ROOT, plan, run_directory

with chdir(config["launched_from"]):  # paths in an experiment file are relative to where the user stands
    experiment = load_experiment(config["experiment"])
    stages = {spec.key: spec for spec in plan(experiment)}
run_dir = run_directory(experiment)
python = sys.executable  # no parameter of a rule: a moved clone has another one
# Kind of stage: its priority, the longest chain of stages first, and the hours that a cluster is asked for. A stage that needs more
# goes on from its checkpoint; one without (sampling, evaluation) starts again.
schedule = {
    "brite_psi": (3, 48), "latro": (3, 48), "rs_sampling": (2, 48), "dpo": (2, 48), "drr": (2, 24), "theta_sft": (1, 24),
    "evaluation": (0, 12), "harness": (0, 12), "theory": (0, 12),
}
report_notebook = PROJECT_ROOT / "notebooks" / "06_report.ipynb"
report_params = ReportParams(run_dir=f"outputs/{experiment.name}", title=experiment.title)


def here(path):
    """Relative to the run, so that a moved clone stays up to date."""
    return os.path.relpath(path, run_dir)


rule all:
    input:
        "report.html" if experiment.methods else [],
        [f"{key}/stage.json" for key in stages],


rule write_report:
    input:
        notebook=here(report_notebook),
        templates=[here(path) for path in sorted(PROJECT_ROOT.glob("brite_lib/*.j2"))],
        stages=[f"{key}/stage.json" for key in stages],
    output:
        "report.html",
        "results.json",
        "results.csv",
    params:
        json=report_params.model_dump_json(),
        code=code_fingerprint(report_notebook, pictures_count=True),
    resources:
        mem_mb=16_000,
        runtime=60,
    shell:
        "{python:q} -m brite_lib.execute {input.notebook:q} report.ipynb {params.json:q}"


# Only stage.json is declared: Snakemake deletes declared outputs before a rerun, and checkpoints must survive.
rule stage:
    input:
        notebook=lambda w: here(stages[w.key].notebook),
        upstream=lambda w: [f"{key}/stage.json" for key in stages[w.key].inputs],
        sources=lambda w: [here(path) for path in stages[w.key].sources],
    output:
        "{key}/stage.json",
    wildcard_constraints:
        key="|".join(map(re.escape, stages)),
    params:
        json=lambda w: stages[w.key].params.model_dump_json(),
        code=lambda w: code_fingerprint(stages[w.key].notebook),
    priority: lambda w: schedule[stages[w.key].kind][0]
    threads: lambda w: asked_for(stages[w.key].params).cores
    resources:
        gpu=lambda w: asked_for(stages[w.key].params).gpus,
        nodes=lambda w: asked_for(stages[w.key].params).nodes,
        mem_mb=lambda w: asked_for(stages[w.key].params).mem_mb,
        runtime=lambda w: 60 * schedule[stages[w.key].kind][1],
    shell:
        "BRITE_CODE={params.code} {python:q} -m brite_lib.execute {input.notebook:q} {wildcards.key:q}/notebook.ipynb {params.json:q}"
