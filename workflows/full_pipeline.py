"""From face images to a registered student, top to bottom.

    python workflows/full_pipeline.py run -c conf/demo.yaml         run what is not finished
    python workflows/full_pipeline.py plan -c conf/demo.yaml        say what would run, why, and what it costs
    python workflows/full_pipeline.py teachers -c conf/demo.yaml    one stage, if those that it reads are finished
    python workflows/full_pipeline.py verify -c conf/demo.yaml      hash every finished file; the next run repairs
    python workflows/full_pipeline.py sync -c conf/demo.yaml        bring MLflow up to the store

Faces are cut once into padded shards; several teachers learn from hard labels at the same time; their ensemble, over
windows moved by a few pixels, writes soft labels; a search finds temperature, weights, offsets and backbone of the
student; its finalists are trained to the end, and so is the hard-label twin of the best; everything is scored on the
test sets; and the student is exported, described and registered. A finished stage is not run again.
"""

import json
import sys
import time
from collections.abc import Sequence

from hpe_core.spec.pipeline import PipelineSpec
from workflows.engine import cost, pipeline
from workflows.engine.config import EXIT_FAILED, arguments, guarded, load, tell
from workflows.engine.results import Results
from workflows.engine.stage import Stage
from workflows.engine.store import Store
from workflows.report.text import print_tables
from workflows.stages import evaluate, labels, publish, search, shards, student, teachers
from workflows.tracking.server import UI_PORT, public, ui_command

STAGES = (
    # Every face is cut once, with a margin that all later offsets, turns and jitters look into.
    Stage(
        "shards",
        shards.run,
        inputs=(),
        depends=shards.depends,
        views={"train": shards.train_depends},
        artifacts={"quarantine.csv": "quarantine", "quarantine.png": "quarantine"},
    ),
    # Several networks learn from hard labels at the same time (EHPNet eqs. 1-3, offsets eq. 4).
    Stage("teachers", teachers.run, inputs=("shards:train",), depends=teachers.depends),
    # Their ensemble, averaged over windows of each (K, d), labels the training faces (EHPNet eq. 4, offsets eqs. 5, 6).
    Stage("labels", labels.run, inputs=("shards:train", "teachers"), depends=labels.depends),
    # Short trials of students find temperature, weights, K, d, learning rate and backbone; validation people judge.
    Stage("search", search.run, inputs=("shards:train", "teachers", "labels"), depends=search.depends),
    # Finalists are trained to the end (EHPNet eq. 5, offsets eq. 7), and the best one's twin from hard labels alone.
    Stage("student", student.run, inputs=("shards:train", "teachers", "labels", "search"), depends=student.depends),
    # Only now are the test sets opened: every network and both ensembles, in the form of the papers' tables.
    Stage("evaluate", evaluate.run, inputs=("shards", "teachers", "student"), depends=evaluate.depends),
    # The student becomes an ONNX file of measured parity, with card, report and the registry's alias.
    Stage(
        "publish",
        publish.run,
        inputs=("shards", "teachers", "labels", "search", "student", "evaluate"),
        depends=publish.depends,
        artifacts={"model": "model", "report": "report"},
    ),
)
NAMES = [stage.name for stage in STAGES]
VERBS = ("run", "plan", "verify", "sync", *NAMES)


def main(argv: Sequence[str]) -> int:
    """`full_pipeline.py [VERB] [-c FILE]... [key=value]...`"""
    args = arguments(argv, __doc__ or "", VERBS, options=cost.add_options)
    spec, began = load(args.config, args.overrides), time.monotonic()
    if args.verb == "plan" and (told := cost.told_of(args, spec)):
        tell(json.dumps(cost.figures(spec, told)) if args.json else cost.page(spec, told))
    elif args.verb == "plan":
        tell(pipeline.plan_page(STAGES, spec, as_json=args.json))
    elif args.verb == "verify":
        text, whole = pipeline.verify(STAGES, spec, as_json=args.json)
        tell(text)
        return 0 if whole else EXIT_FAILED
    elif args.verb == "sync":
        tell(pipeline.sync_mlflow(STAGES, spec))
    elif args.verb in NAMES:
        tell(pipeline.run_alone(STAGES, spec, args.verb, as_json=args.json))
    else:
        results = pipeline.run(STAGES, spec)
        rows = json.dumps([row.as_json() for row in results.evaluate.rows]) if args.json else ""
        tell(rows or closing(spec, results, time.monotonic() - began))
    return 0


def closing(spec: PipelineSpec, results: Results, seconds: float) -> str:
    """The table, and where to look."""
    published = Store(STAGES, spec).plan()["publish"].key
    lines = [print_tables(results.evaluate), ""]
    lines += [f"{'report':<9}{spec.store}/{published}/{results.publish.report}"]
    lines += [f"{'ONNX':<9}{spec.store}/{published}/{results.publish.onnx}"]
    lines += [f"{word:<9}{text}" for word, text in zip(("MLflow", ""), where(spec), strict=False)]
    lines += [f"{'time':<9}{seconds:.0f} s"]
    return "\n".join(lines)


def where(spec: PipelineSpec) -> list[str]:
    """Where MLflow shows the registered model: a server's page; of a database the command that opens it, and a page."""
    page = f"#/models/{spec.publish.model_name}"
    if spec.mlflow.uri == "none":
        return []
    if spec.tracking_uri.startswith("sqlite:"):
        return [ui_command(spec.tracking_uri), f"then http://127.0.0.1:{UI_PORT}/{page}"]
    return [f"{public(spec.tracking_uri).rstrip('/')}/{page}"]


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
