"""From face images to a registered student, top to bottom.

    python workflows/full_pipeline.py -c conf/demo.yaml           run what is not finished
    python workflows/full_pipeline.py plan -c conf/demo.yaml      say what would run, and which key made it so
    python workflows/full_pipeline.py verify -c conf/demo.yaml    hash every finished file; the next run repairs

Faces are cut once into padded shards; several teachers learn from hard labels at the same time; their ensemble, over
windows moved by a few pixels, writes soft labels; a search finds temperature, weights, offsets and backbone of the
student; its finalists are trained to the end, and so is the hard-label twin of the best; everything is scored on the
test sets; and the student is exported, described and registered. A finished stage is not run again.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpe_core.errors import SpecError, UserError, check, nearest
from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import to_dict
from hpe_core.system.remote import RemoteError
from workflows.engine.config import EXIT_FAILED, REPO, arguments, as_yaml, guarded, load, tell
from workflows.engine.contents import misfits
from workflows.engine.disk import disk_is_full, size
from workflows.engine.mirror import Mirror, held
from workflows.engine.store import (
    Planned,
    Stage,
    StageFailed,
    execute,
    finished,
    leaves_of,
    plan,
    plan_checked,
    read_manifest,
)

# ---------------------------------------------------------------- what every stage depends on


def all_data(spec: PipelineSpec) -> dict[str, Any]:
    """Shards depend on every dataset that is named, on its role, and on the files it lists."""
    return data_leaves(spec, [*spec.data.train, *spec.data.test]) | {"test": sorted(spec.data.test)}


def train_data(spec: PipelineSpec) -> dict[str, Any]:
    """What is learnt depends on the datasets that are trained on, not on the test sets."""
    return data_leaves(spec, spec.data.train)


def training_leaves(spec: PipelineSpec) -> dict[str, Any]:
    """Workers and the way to them decide which faces meet in a batch."""
    return {"workers": spec.cluster.workers, **spec.data.batching}


def weights(nets: Sequence[NetSpec]) -> dict[str, str]:
    """What lies in the weights files that networks start from: a file may change under its name."""
    from workflows.training.networks import weights_hash

    return {net.pretrained: found for net in nets if (found := weights_hash(net))}


READING = ("resident_gb", "ingest", "stream_shards")  # keys of `data` that say how shards are read


def data_leaves(spec: PipelineSpec, names: Sequence[str]) -> dict[str, Any]:
    from hpe_core.datasets.registry import open_source

    used = {name: spec.data.datasets[name] for name in sorted(set(names))}
    # max_bad_share decides whether a run stops, others how shards are read; they change none. A root, boxes or
    # a detector are replaced by what lies there, so that a moved archive is the same archive.
    return {
        "data": leaves_of(spec.data, "datasets", "max_bad_share", "train", "test", *READING),
        "train": sorted(spec.data.train),
        "datasets": {name: leaves_of(dataset, "root", "boxes", "detector") for name, dataset in used.items()},
        "files": {name: fingerprint(name, open_source(dataset)) for name, dataset in used.items()},
    }


def fingerprint(name: str, source: Any) -> str:
    """Of a dataset's files; an error names the dataset."""
    from hpe_core.datasets.base import DatasetError

    try:
        return str(source.fingerprint())
    except DatasetError as error:
        raise DatasetError(f"dataset '{name}': {error}") from None


STAGES = (
    # Every face is cut once, with a margin that all later offsets, turns and jitters look into.
    Stage(
        "shards",
        "workflows.stages.shards:run",
        inputs=(),
        leaves=all_data,
        views={"train": train_data},
    ),
    # Several networks learn from hard labels at the same time (EHPNet eqs. 1-3, offsets eq. 4).
    Stage(
        "teachers",
        "workflows.training.networks:run_teachers",
        inputs=("shards:train",),
        leaves=lambda spec: (
            {
                "teachers": to_dict(spec.teachers),
                "weights": weights([teacher.net for teacher in spec.teachers.values()]),
            }
            | training_leaves(spec)
        ),
    ),
    # Their ensemble, averaged over windows of each (K, d), labels the training faces (EHPNet eq. 4, offsets eqs. 5, 6).
    Stage(
        "labels",
        "workflows.stages.labels:run",
        inputs=("shards:train", "teachers"),
        leaves=lambda spec: {"sets": [labels.name for labels in spec.label_sets()]},
    ),
    # Short trials of students find temperature, weights, K, d, learning rate and backbone; validation people judge.
    Stage(
        "search",
        "workflows.stages.search:run",
        inputs=("shards:train", "teachers", "labels"),
        leaves=lambda spec: {
            "student": to_dict(spec.student),
            "weights": weights([spec.student.net]),
            "search": leaves_of(spec.search, "concurrent", "finalists") if spec.search.trials else "none",
            **spec.data.batching,
        },
    ),
    # Finalists are trained to the end (EHPNet eq. 5, offsets eq. 7), and the best one's twin from hard labels alone.
    Stage(
        "student",
        "workflows.training.networks:run_student",
        inputs=("shards:train", "teachers", "labels", "search"),
        leaves=lambda spec: (
            {"student": to_dict(spec.student), "finalists": spec.search.finalists} | training_leaves(spec)
        ),
    ),
    # Only now are the test sets opened: every network and both ensembles, in the form of the papers' tables.
    Stage(
        "evaluate",
        "workflows.stages.evaluate:run",
        inputs=("shards", "teachers", "student"),
        leaves=lambda spec: {"evaluate": to_dict(spec.evaluate), "test": list(spec.data.test)},
    ),
    # The student becomes an ONNX file of measured parity, with card, report and the registry's alias.
    Stage(
        "publish",
        "workflows.stages.publish:run",
        inputs=("shards", "teachers", "labels", "search", "student", "evaluate"),
        leaves=lambda spec: {"publish": to_dict(spec.publish), "name": spec.name},
    ),
)
COMMANDS = {"teachers": "train.py teachers", "student": "train.py student", "search": "tune.py"}
DOING = {"run": "starting", "continue": "continuing", "repair": "repairing"}


# ---------------------------------------------------------------- the run


def run_pipeline(spec: PipelineSpec, stages: Sequence[Stage] = STAGES) -> dict[str, dict[str, Any]]:
    """Run every stage that is not finished, in order; returns all results by stage name."""
    store = store_of(spec)
    planned = {entry.stage.name: entry for entry in plan(stages, spec, store.size)}
    for entry in planned.values():
        print(plan_line(entry), file=sys.stderr)
    if any(entry.action != "skip" for entry in planned.values()):
        check_backbones(spec)
    elif not any(store.lacks(entry.folder) for entry in planned.values()):
        return {name: finished(entry.folder)["result"] for name, entry in planned.items()}
    with held(spec) as mirror:
        # Another run may just have finished.
        planned = {entry.stage.name: entry for entry in plan_checked(stages, spec, mirror)}
        running = [entry for entry in planned.values() if entry.action != "skip"]
        for entry in planned.values():
            if entry.action == "skip":
                mirror.push(entry.folder, made=False)
        if running:
            bring_networks(mirror, running)
            with Drive(spec, planned) as drive:
                for entry in running:
                    drive.run(entry)
                    mirror.push(entry.folder)
    return {name: finished(entry.folder)["result"] for name, entry in planned.items()}


def bring_networks(mirror: Mirror, running: Sequence[Planned]) -> None:
    """From a remote store, where a stage that trains is about to run; others read networks from finished stages."""
    if any(entry.stage.name in ("teachers", "student") for entry in running):
        mirror.bring_networks()


def plan_line(entry: Planned) -> str:
    return f"{entry.stage.name:<9} {entry.action:<8} {entry.hash}  {entry.reason}"


def check_backbones(spec: PipelineSpec) -> None:
    """Every backbone that the run may ask for is known to timm; said before Ray starts.

    In a process of its own: timm and torch would stay in the driver's memory for the whole run.
    """
    named = {train.net.backbone for train in [*spec.teachers.values(), spec.student]}
    searched = spec.search.space.get("net.backbone")
    names = sorted(named | {str(value) for value in (searched.choice if searched else ())})
    code = (
        "import sys\nfrom hpe_core.learning.models import check_backbone\nfrom hpe_core.errors import SpecError\n"
        "try:\n    [check_backbone(name) for name in sys.argv[1:]]\nexcept SpecError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, cwd=REPO)
    if done.returncode or done.stdout.strip():
        raise SpecError(done.stdout.strip() or f"timm cannot be imported: {done.stderr.strip().splitlines()[-1]}")


class Drive(contextlib.AbstractContextManager["Drive"]):
    """The driver's side of a run: cluster, board, console and tracker, opened together and closed in order."""

    def __init__(self, spec: PipelineSpec, planned: Mapping[str, Planned]) -> None:
        self.spec, self.planned = spec, planned
        self.key = f"pipeline/{list(planned.values())[-1].hash}"
        self.number = {name: f"{i}/{len(planned)}" for i, name in enumerate(planned, start=1)}

    def __enter__(self) -> "Drive":
        from workflows.engine.cluster import connected, machinery
        from workflows.tracking.console import Console
        from workflows.tracking.progress import Pump, start_board
        from workflows.tracking.tracker import Tracker

        self.console = Console()
        with contextlib.ExitStack() as opened:  # what is open is closed again if the rest cannot be opened
            self.tracker = Tracker.open(tracking_uri(self.spec), self.spec.mlflow.experiment, self.spec.folder)
            opened.push(self.tracker)
            begin_run(self.tracker, self.key, self.spec, self.planned)
            self.console.say(opened.enter_context(connected(self.spec.cluster)))
            self.machinery = machinery()
            actor, self.reporter = start_board()
            self.pump = Pump(actor, self.handle)
            opened.callback(self.pump.close)
            self.exit = opened.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.exit.__exit__(kind, error, trace)

    def run(self, entry: Planned) -> None:
        """One stage, with its run in MLflow and a line when it starts and ends."""
        name = entry.stage.name
        self.console.enter(f"{name} {self.number[name]}")
        self.console.say(f"{name}: {DOING[entry.action]} ({entry.reason})")
        self.tracker.run(entry.key, name=name, parent=self.key, tags={"stage": name, "folder": str(entry.folder)})
        self.tracker.params(entry.key, entry.leaves)
        began, log = time.monotonic(), entry.folder / "error.txt"
        log.unlink(missing_ok=True)  # of an earlier attempt: it is no part of what the stage makes
        try:
            result = execute(
                entry,
                self.spec,
                self.planned,
                self.reporter,
                lambda result: self.note(name, entry, result),
                self.machinery,
            )
        except Exception as error:
            self.tracker.finish(entry.key, "FAILED")
            if expected(error):
                raise plain(error) from None
            if disk_is_full(error):
                free = size(shutil.disk_usage(entry.folder).free)
                raise StageFailed(
                    f"stage {name} failed: the disk of {entry.folder} is full ({free} free); what is finished is kept, "
                    "make room and the same command continues"
                ) from None
            log.write_text(traceback.format_exc())
            last = [line for line in str(error).splitlines() if line.strip()][-1:] or [type(error).__name__]
            raise StageFailed(f"stage {name} failed: {last[0].strip()} (traceback in {log})") from error
        self.tracker.metrics(entry.key, {"seconds": time.monotonic() - began}, step=0)
        self.tracker.artifact(entry.key, entry.folder / "manifest.json")
        self.tracker.finish(entry.key)
        self.console.say(f"{name}: done in {time.monotonic() - began:.0f} s{headline(name, result)}")

    def note(self, name: str, entry: Planned, result: dict[str, Any]) -> None:
        """Everything that the workers and the result have to say goes to the tracker's journal."""
        self.pump.flush()
        self.tracker.metrics(entry.key, stage_metrics(name, result), step=0)
        if name == "shards":
            self.tracker.tags(self.key, {"shards.fingerprint": result["fingerprint"]})
        if name == "evaluate":
            self.note_scores(result)

    def note_scores(self, result: dict[str, Any]) -> None:
        """The scores on the parent run, and the student's in its name: the first thing that one sees in MLflow."""
        scores = {f"{row['test']}/{row['name'].replace(chr(39), '')}/mae": row["mae"] for row in result["rows"]}
        self.tracker.metrics(self.key, scores, step=0)
        best = next(row for row in result["rows"] if row["name"] == "distilled")
        name = f"MAE {best['mae']:.2f} · {self.spec.name}"  # MLflow's list shows the first 16 letters
        self.tracker.run(self.key, name=name, tags={"student_mae": f"{best['mae']:.3f}"})

    def handle(self, event: tuple[str, Any]) -> None:
        """One event from the board: to the console or to the tracker."""
        kind, body = event
        if kind == "progress":
            self.console.progress(*body)
        elif kind == "say":
            self.console.say(body)
        elif kind == "started":
            key, name, parent, params = body
            self.tracker.run(key, name=name, parent=parent, tags={"stage": name.split(":")[0].split()[0]})
            self.tracker.params(key, params)
        elif kind == "metrics":
            key, values, step, when = body
            self.tracker.metrics(key, values, step=step, timestamp_ms=when)
        elif kind == "ended":
            self.tracker.finish(*body)
        elif kind == "artifact":
            key, path, folder = body
            self.tracker.artifact(key, Path(path), folder)
        else:
            assert kind == "register", kind
            key, model, folder, alias, contest, description, tags = body
            made = self.tracker.register(
                key,
                model,
                folder,
                alias=alias,
                contest=contest,
                description=description,
                tags=tags,
                summary=tags.get("summary", ""),
            )
            if made is None:
                self.console.say(f"registered {model}: in the spool until MLflow answers")
            elif made.version == made.holder:
                self.console.say(f"registered {model} version {made.version}, the {alias}")
            else:
                self.console.say(
                    f"registered {model} version {made.version}, candidate; version {made.holder} stays {alias} with "
                    "a smaller error on the same validation faces"
                )


def tracking_uri(spec: PipelineSpec) -> str:
    return spec.mlflow.uri or f"sqlite:///{spec.folder / 'mlflow.db'}"


def begin_run(tracker: Any, key: str, spec: PipelineSpec, planned: Mapping[str, Planned]) -> None:
    """The parent run: configuration, commit, and which stages were finished before it."""
    from workflows.tracking.tracker import git_commit

    tags = {"commit": git_commit(REPO), "config": spec.name}
    tags |= {f"reused.{name}": entry.key for name, entry in planned.items() if entry.action == "skip"}
    tracker.run(key, name=spec.name, tags=tags)
    tracker.params(key, dict(to_dict(spec)))
    tracker.text(key, as_yaml(spec), "config.yaml")


def expected(error: Exception) -> bool:
    """Errors that already are one sentence for the user."""
    return isinstance(error, UserError | StageFailed)


def plain(error: Exception) -> Exception:
    """What went wrong in a worker, without the worker's traceback that Ray makes part of the message."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) and expected(cause) else error


def stage_metrics(name: str, result: dict[str, Any]) -> dict[str, float]:
    if name == "shards":
        return {
            f"{split}/{what}": float(row[what]) for split, row in result["splits"].items() for what in ("kept", "input")
        }
    if name in ("teachers", "student"):
        return {f"{network}/val_mae": row["val_mae"] for network, row in result["networks"].items()}
    if name == "labels":
        return {f"train_mae/{which}": mae for which, mae in result["train_mae"].items()}
    if name == "evaluate":
        return {f"drift/{kind}/{key}": value for kind, row in result["drift"].items() for key, value in row.items()}
    if name == "search":
        found = {"trials": float(len(result["trials"]))}
        return found | ({"best_val_mae": result["best"]["best_val_mae"]} if result["trials"] else {})
    return {}


def headline(name: str, result: dict[str, Any]) -> str:
    """What a stage found, in half a line."""
    if name in ("teachers", "student"):
        told = "; validation MAE " + ", ".join(f"{k} {v['val_mae']:.2f}" for k, v in result["networks"].items())
        rivals = ", ".join(f"{row['val_mae']:.2f}" for row in result.get("finalists", ()))
        return told + (f" (best of the finalists {rivals})" if rivals else "")
    if name == "labels":
        return "; MAE on the training faces " + ", ".join(f"{k} {v:.2f}" for k, v in result["train_mae"].items())
    if name == "search" and not result["trials"]:
        return "; left out (search.trials=0)"
    if name == "search":
        best = result["best"]
        chosen = ", ".join(f"{k.split('.')[-1]}={short(v)}" for k, v in best["changes"].items())
        died = f" ({result['failed']} failed)" if result["failed"] else ""
        return f"; best of {len(result['trials'])} trials{died} {best['best_val_mae']:.2f} with {chosen}"
    if name == "shards":
        return "; " + ", ".join(f"{k} {v['kept']} of {v['input']}" for k, v in result["splits"].items())
    return ""


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- command lines


def main(argv: Sequence[str]) -> int:
    """`full_pipeline.py [run|plan|verify] [-c FILE]... [key=value]...`"""
    args = arguments(argv, __doc__ or "", ("run", "plan", "verify"))
    spec = load(args.config, args.overrides)
    if args.verb == "plan":
        return print_plan(spec, args.json)
    if args.verb == "verify":
        return verify(spec, args.json)
    began = time.monotonic()
    results = run_pipeline(spec)
    if args.json:
        tell(json.dumps(results["evaluate"]["rows"]))
    else:
        tell(closing(spec, results, time.monotonic() - began))
    return 0


def store_of(spec: PipelineSpec) -> Mirror:
    """The store to be looked at, not held: what is finished there is known. Raises SpecError: nothing has begun yet."""
    mirror = Mirror(spec)
    try:
        mirror.look()
    except RemoteError as error:
        raise SpecError(f"store: {error}") from None
    return mirror


def print_plan(spec: PipelineSpec, as_json: bool) -> int:
    entries = plan(STAGES, spec, store_of(spec).size)
    if as_json:
        tell(json.dumps([plan_row(entry) for entry in entries]))
    else:
        tell("\n".join(plan_line(entry) for entry in entries))
    return 0


def plan_row(entry: Planned) -> dict[str, str]:
    """A stage of the plan as scripts read it."""
    return {"stage": entry.stage.name, "action": entry.action, "hash": entry.hash, "reason": entry.reason}


def verify(spec: PipelineSpec, as_json: bool) -> int:
    """Hash every file of every finished stage of this configuration; returns 1 where one is not whole."""
    found: dict[str, dict[str, Any]] = {}
    with held(spec) as mirror:
        for entry in plan(STAGES, spec, mirror.size):
            manifest = read_manifest(entry.folder)
            if manifest is None:
                continue
            files = manifest["files"]
            lost = [*misfits(entry.folder, files, mirror.size), *mirror.check(entry.folder, files)]
            size = sum(listed["bytes"] for listed in files.values())
            found[entry.stage.name] = {"files": len(files), "bytes": size, "lost": lost}
    lines = []
    for name, row in found.items():
        lines.append(
            f"{name:<9} {len(row['lost'])} of {row['files']} files lost or damaged, {row['bytes'] / 1e6:.1f} MB"
        )
        lines += [f"          {sentence}" for sentence in row["lost"]]
    tell(json.dumps(found) if as_json else "\n".join(lines) or "nothing is finished yet for this configuration")
    return EXIT_FAILED if any(row["lost"] for row in found.values()) else 0


def closing(spec: PipelineSpec, results: dict[str, dict[str, Any]], seconds: float) -> str:
    """The table, and where to look."""
    from workflows.stages.evaluate import print_tables
    from workflows.tracking.tracker import ui_command

    published = {entry.stage.name: entry for entry in plan(STAGES, spec)}["publish"].key
    lines = [print_tables(results["evaluate"]), ""]
    lines += [f"{'report':<9}{spec.store}/{published}/{results['publish']['report']}"]
    lines += [f"{'ONNX':<9}{spec.store}/{published}/{results['publish']['onnx']}"]
    if spec.mlflow.uri != "none":
        lines += [f"{'MLflow':<9}{ui_command(tracking_uri(spec))}"]
        lines += [f"{'':<9}then http://127.0.0.1:5000/#/models/{spec.publish.model_name}"]
    lines += [f"{'time':<9}{seconds:.0f} s"]
    return "\n".join(lines)


def check_upstream(planned: Mapping[str, Planned], name: str, spec: PipelineSpec) -> None:
    """Raises SpecError unless every stage that this one reads is finished and whole."""
    missing = [other for other in planned[name].stage.upstream() if planned[other].action != "skip"]
    if missing:
        first = COMMANDS.get(missing[0], f"{missing[0]}.py")
        reason = f" ({planned[missing[0]].reason})" if planned[missing[0]].action == "repair" else ""
        raise SpecError(
            f"stage {name} needs {', '.join(missing)}, not finished for this configuration in {spec.store}{reason}: "
            f"run workflows/{first} or workflows/full_pipeline.py first"
        )


def stage_command(names: Sequence[str], doc: str, argv: Sequence[str]) -> int:
    """A stage as a command of its own: runs it if the stages that it depends on are finished.

    Of several `names` the first word says which; where it does not, the first is meant.
    """

    def one_stage() -> int:
        name, words = stage_named(names, argv)
        which = f"stage: the first word, {' or '.join(names)} (default {names[0]})" if len(names) > 1 else ""
        args = arguments(words, doc, own_keys=which)
        spec = load(args.config, args.overrides)
        planned = {entry.stage.name: entry for entry in plan(STAGES, spec, store_of(spec).size)}
        entry = planned[name]
        if args.verb == "plan":
            tell(json.dumps(plan_row(entry)) if args.json else plan_line(entry))
            return 0
        check_upstream(planned, name, spec)
        print(plan_line(entry), file=sys.stderr)
        if entry.action != "skip":
            check_backbones(spec)
            with held(spec) as mirror:
                planned = {entry.stage.name: entry for entry in plan_checked(STAGES, spec, mirror, [name])}
                check_upstream(planned, name, spec)
                if planned[name].action != "skip":
                    bring_networks(mirror, [planned[name]])
                    with Drive(spec, planned) as drive:
                        drive.run(planned[name])
                        mirror.push(planned[name].folder)
        result = finished(entry.folder)["result"]
        tell(json.dumps(result) if args.json else f"{name}: {entry.folder}{headline(name, result)}")
        return 0

    return guarded(one_stage)


def stage_named(names: Sequence[str], argv: Sequence[str]) -> tuple[str, list[str]]:
    """(stage, the words after it). Raises SpecError for a first word that is neither one of `names` nor a verb."""
    first = argv[0] if argv else ""
    if first in names:
        return first, list(argv[1:])
    known = [*names, "run", "plan"]
    a_name = len(names) > 1 and first and "=" not in first and not first.startswith("-")
    check(not a_name or first in known, f"unknown stage '{first}'{nearest(first, known)}")
    return names[0], list(argv)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
