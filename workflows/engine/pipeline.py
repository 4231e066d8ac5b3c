"""Stages in order: run what is not finished, one stage alone, or say what would run."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from hpe_core.errors import SpecError, UserError, check, say
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import to_dict
from hpe_core.system.packages import check_extra
from workflows.engine.results import Results
from workflows.engine.runner import Runner
from workflows.engine.stage import Stage, StageFailed
from workflows.engine.store import Plan, Store, result_of
from workflows.storage.code import ROOT
from workflows.storage.lock import StoreHeld
from workflows.tracking.projection import facts_of
from workflows.tracking.server import public
from workflows.tracking.sync import cause, sync

REGISTERED = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)


def run(stages: Sequence[Stage], spec: PipelineSpec) -> Results:
    """Run every stage that is not finished, in order; returns all results."""
    store = Store.open(stages, spec)
    planned = store.plan()
    for entry in planned.values():
        say(entry.line)
    if all(entry.action == "skip" and not store.mirror.lacks(entry.folder) for entry in planned.values()):
        return store.results(planned)
    if any(entry.action != "skip" for entry in planned.values()):
        check_extra()
        check_backbones(spec)
    with store.held():
        planned = store.checkout()  # another run may just have finished
        store.push_finished(planned)
        _run(store, planned, [name for name, entry in planned.items() if entry.action != "skip"])
    return store.results(planned)


def run_alone(stages: Sequence[Stage], spec: PipelineSpec, name: str, *, as_json: bool) -> str:
    """Run one stage if those that it reads are finished; returns its headline, or its result as JSON."""
    store = Store.open(stages, spec)
    planned = store.plan()
    check_upstream(planned, name, spec)
    say(planned[name].line)
    if planned[name].action != "skip":
        check_extra()
        check_backbones(spec)
        with store.held():
            planned = store.checkout([name])
            check_upstream(planned, name, spec)
            _run(store, planned, [name] if planned[name].action != "skip" else [])
    result = result_of(planned[name].stage, planned[name].folder)
    headline = "; ".join([f"{name}: {planned[name].folder}", *filter(None, [result.headline()])])
    return json.dumps(to_dict(result)) if as_json else headline


def _run(store: Store, planned: Plan, names: Sequence[str]) -> None:
    if names:
        with Runner(store, planned, names) as runner:
            for name in names:
                runner.run(planned[name])


def check_upstream(planned: Plan, name: str, spec: PipelineSpec) -> None:
    """Raises SpecError unless every stage that this one reads is finished and whole."""
    missing = [other for other in planned[name].stage.upstream if planned[other].action != "skip"]
    if missing:
        reason = f" ({planned[missing[0]].reason})" if planned[missing[0]].action == "repair" else ""
        said = f"stage {name} needs {', '.join(missing)}, not finished for this configuration in {spec.store}{reason}"
        raise SpecError(f"{said}: run {missing[0]}, or the whole pipeline, first")


def plan_page(stages: Sequence[Stage], spec: PipelineSpec, *, as_json: bool) -> str:
    """What each stage would do and why, and how long it took before."""
    planned = Store.open(stages, spec).plan()
    if as_json:
        return json.dumps([entry.row for entry in planned.values()])
    running = [entry for entry in planned.values() if entry.action != "skip"]
    known = [entry.seconds for entry in running if entry.seconds is not None]
    lines = [entry.line for entry in planned.values()]
    if running:
        last = f"; {len(known)} of them took {sum(known):.0f} s when they last ran in this store" if known else ""
        lines.append(f"{'to run':<9} {len(running)} stages{last}")
    return "\n".join(lines)


def verify(stages: Sequence[Stage], spec: PipelineSpec, *, as_json: bool) -> tuple[str, bool]:
    """Hash every file of every finished stage; what was found, as text, and whether all is whole."""
    store = Store.open(stages, spec)
    with store.held():
        found = store.verify()
    lines = []
    for name, checked in found.items():
        lost, megabytes = len(checked.lost), checked.bytes / 1e6
        lines.append(f"{name:<9} {lost} of {checked.files} files lost or damaged, {megabytes:.1f} MB")
        lines += [f"          {sentence}" for sentence in checked.lost]
    text = "\n".join(lines) or "nothing is finished yet for this configuration"
    rows = {name: vars(checked) for name, checked in found.items()}
    return json.dumps(rows) if as_json else text, not any(checked.lost for checked in found.values())


def sync_mlflow(stages: Sequence[Stage], spec: PipelineSpec) -> str:
    """Bring MLflow up to the store; a sentence about what was sent. Raises StageFailed if MLflow does not answer."""
    check_extra()
    store, uri = Store.open(stages, spec), spec.tracking_uri

    def bring(held: bool) -> str:
        done = sync(spec.folder, uri, spec.mlflow.experiment, facts_of(spec.folder, held=held))
        if done.refused:
            raise StageFailed(done.sentence())
        return done.sentence()

    try:
        try:
            with store.held():
                return bring(held=False)
        except StoreHeld:  # its run is told as running
            return bring(held=True)
    except (UserError, ValueError, StageFailed):
        raise
    except Exception as error:  # MLflow, its client and its database raise what they like
        raise StageFailed(f"MLflow at {public(uri)} does not answer: {cause(error)}; the store has it all") from error


def check_backbones(spec: PipelineSpec) -> None:
    """Raises SpecError for backbones that timm does not know. To ask it takes seconds, so its source is read first."""
    if doubtful := backbones_of(spec) - registered_backbones():
        unknown = unknown_backbones(doubtful)
        check(not unknown, "; ".join(unknown))


def registered_backbones() -> set[str]:
    """The names of the backbones that the source of timm registers, and ours; nothing is imported."""
    timm, ours = find_spec("timm"), find_spec("hpe_core.networks.backbones")
    files = [Path(ours.origin)] if ours and ours.origin else []
    if timm and timm.origin:
        files += Path(timm.origin).parent.glob("models/*.py")
    return {name for file in files for name in REGISTERED.findall(file.read_text("utf-8"))}


def backbones_of(spec: PipelineSpec) -> set[str]:
    """Of the teachers, the student and every student that the search may try."""
    searched = spec.search.space.get("net.backbone")
    named = {train.net.backbone for train in [*spec.teachers.values(), spec.student]}
    return named | {str(value) for value in (searched.choice if searched else ())}


def unknown_backbones(names: Iterable[str]) -> list[str]:
    """A sentence for each backbone that timm does not know. In a process of its own, which takes torch along."""
    code = (
        "import sys\nfrom hpe_core.networks.models import check_backbone\nfrom hpe_core.errors import SpecError\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        check_backbone(name)\n    except SpecError as error:\n        print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, *sorted(names)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]  # killed, say
        return [f"timm cannot be imported: {said[-1]}"]
    return done.stdout.splitlines()
