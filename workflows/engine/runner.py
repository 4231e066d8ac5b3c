"""The driver's side of a run: cluster, progress board, console and tracker, opened together and closed in order."""

import contextlib
import functools
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpe_core.errors import UserError
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import to_dict
from workflows.engine.config import REPO, as_yaml
from workflows.engine.disk import disk_is_full, size
from workflows.engine.manifest import now
from workflows.engine.plan import Planned
from workflows.engine.results import EvaluateResult, PublishResult, Role, ShardsResult, StageResult
from workflows.engine.stage import StageFailed, StageRun
from workflows.engine.store import Plan, Store
from workflows.tracking.progress import Reporter

DOING = {"run": "starting", "continue": "continuing", "repair": "repairing"}


def tracking_uri(spec: PipelineSpec) -> str:
    """MLflow's address: the configured one, or SQLite in the store."""
    return spec.mlflow.uri or f"sqlite:///{spec.folder / 'mlflow.db'}"


class Runner(contextlib.AbstractContextManager["Runner"]):
    """Runs stages of a store that is held."""

    def __init__(self, store: Store, planned: Plan) -> None:
        self.store, self.spec, self.planned = store, store.spec, planned
        self.key = f"pipeline/{list(planned.values())[-1].hash}"
        self.number = {name: f"{i}/{len(planned)}" for i, name in enumerate(planned, start=1)}

    def __enter__(self) -> "Runner":
        from workflows.engine.cluster import connected, machinery
        from workflows.tracking.progress import Console, Pump, start_board
        from workflows.tracking.tracker import Tracker

        self.console = Console()
        with contextlib.ExitStack() as opened:  # what is open is closed again if the rest cannot be opened
            self.tracker = Tracker.open(tracking_uri(self.spec), self.spec.mlflow.experiment, self.spec.folder)
            opened.push(self.tracker)
            self.begin()
            self.console.say(opened.enter_context(connected(self.spec.cluster)))
            self.machinery = machinery()
            actor, self.reporter = start_board()
            self.pump = Pump(actor, self.handle)
            opened.callback(self.pump.close)
            self.exit = opened.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.exit.__exit__(kind, error, trace)

    def begin(self) -> None:
        """The parent run: configuration, commit, and which stages were finished before it."""
        from workflows.tracking.tracker import git_commit

        tags = {"commit": git_commit(REPO), "config": self.spec.name}
        tags |= {f"reused.{name}": entry.key for name, entry in self.planned.items() if entry.action == "skip"}
        self.tracker.run(self.key, name=self.spec.name, tags=tags)
        self.tracker.params(self.key, dict(to_dict(self.spec)))
        self.tracker.text(self.key, as_yaml(self.spec), "config.yaml")

    def run(self, entry: Planned) -> None:
        """One stage, from its line on the console to its manifest. Raises StageFailed, and UserError as it is."""
        name, began = entry.stage.name, time.monotonic()
        self.console.enter(f"{name} {self.number[name]}")
        self.console.say(f"{name}: {DOING[entry.action]} ({entry.reason})")
        self.tracker.run(entry.key, name=name, parent=self.key, tags={"stage": name, "folder": str(entry.folder)})
        self.tracker.params(entry.key, entry.leaves)
        try:
            note = functools.partial(self.note, entry)
            result, changed = execute(self.store, self.planned, entry, self.reporter, self.machinery, note)
        except Exception as error:
            self.show(entry)
            self.tracker.finish(entry.key, "FAILED")
            raise explained(error, entry) from (None if is_explained(error) else error)
        seconds = time.monotonic() - began
        self.tracker.metrics(entry.key, {"seconds": seconds}, step=0)
        self.tracker.artifact(entry.key, entry.folder / "manifest.json")
        self.tracker.finish(entry.key)
        for sentence in changed:
            self.console.say(sentence)
        said = result.headline()
        self.console.say(f"{name}: done in {seconds:.0f} s{'; ' if said else ''}{said}")

    def note(self, entry: Planned, result: StageResult) -> None:
        """Everything that the workers and the result have to say goes to the tracker's journal."""
        self.pump.flush()
        self.tracker.metrics(entry.key, result.metrics(), step=0)
        self.show(entry)
        if isinstance(result, ShardsResult):
            self.tracker.tags(self.key, {"shards.fingerprint": result.fingerprint})
        if isinstance(result, EvaluateResult):
            scores = {f"{row.test}/{row.name.replace(chr(39), '')}/mae": row.mae for row in result.rows}
            self.tracker.metrics(self.key, scores, step=0)
            best = result.row(Role.DISTILLED).mae
            name = f"MAE {best:.2f} · {self.spec.name}"  # MLflow's list shows the first 16 letters
            self.tracker.run(self.key, name=name, tags={"student_mae": f"{best:.3f}"})
        if isinstance(result, PublishResult):
            self.register(entry, result)

    def show(self, entry: Planned) -> None:
        """The stage's files in MLflow."""
        for path, folder in entry.stage.artifacts.items():
            if (entry.folder / path).exists():
                self.tracker.artifact(entry.key, entry.folder / path, folder)

    def register(self, entry: Planned, result: PublishResult) -> None:
        model = result.registration
        made = self.tracker.register(
            entry.key,
            model.name,
            "model",
            alias=model.alias,
            contest=model.contest,
            description=model.description,
            tags=model.tags,
            summary=model.summary,
        )
        if made is None:
            self.console.say(f"registered {model.name}: in the spool until MLflow answers")
        elif made.version == made.holder:
            self.console.say(f"registered {model.name} version {made.version}, the {model.alias}")
        else:
            self.console.say(
                f"registered {model.name} version {made.version}, candidate; version {made.holder} stays "
                f"{model.alias} with a smaller error on the same validation faces"
            )

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
        else:
            assert kind == "ended", kind
            self.tracker.finish(*body)


def execute(
    store: Store,
    planned: Plan,
    entry: Planned,
    reporter: Reporter,
    machinery: Mapping[str, float] | None = None,
    note: Callable[[StageResult], None] = lambda result: None,
) -> tuple[StageResult, list[str]]:
    """Run a stage's function in its folder and commit what it made.

    `machinery` is what it ran on, noted for its cost: {"cpus", "gpus"}. `note` sees the result before the manifest
    makes the stage finished. Returns the result, and a sentence for files that a repair has changed.
    """
    entry.folder.mkdir(parents=True, exist_ok=True)
    (entry.folder / "error.txt").unlink(missing_ok=True)  # of an earlier attempt: no part of what the stage makes
    started, clock, stage = now(), time.monotonic(), entry.stage
    result = stage.run(
        StageRun(
            name=stage.name,
            key=entry.key,
            spec=store.spec,
            folder=entry.folder,
            inputs={name: planned[name].folder for name in stage.upstream},
            hashes=entry.inputs,
            results=store.results(planned, stage.upstream),
            reporter=reporter,
        )
    )
    note(result)
    noted = {"started": started, "seconds": time.monotonic() - clock, "machinery": dict(machinery or {})}
    return result, store.commit(entry, result, noted)


def is_explained(error: BaseException) -> bool:
    """Whether an error, or what a worker raised, already is one sentence for the user."""
    return isinstance(error, UserError | StageFailed) or isinstance(
        getattr(error, "cause", None), UserError | StageFailed
    )


def explained(error: Exception, entry: Planned) -> Exception:
    """What went wrong in one sentence; a traceback goes into the stage's folder.

    A worker's own sentence comes without the worker's traceback, which Ray makes part of the message.
    """
    if is_explained(error):
        cause = getattr(error, "cause", None)
        return cause if isinstance(cause, Exception) else error
    if disk_is_full(error):
        free = size(shutil.disk_usage(entry.folder).free)
        return StageFailed(
            f"stage {entry.stage.name} failed: the disk of {entry.folder} is full ({free} free); what is finished is "
            "kept, make room and the same command continues"
        )
    log: Path = entry.folder / "error.txt"
    log.write_text("".join(traceback.format_exception(error)))
    last = [line for line in str(error).splitlines() if line.strip()][-1:] or [type(error).__name__]
    return StageFailed(f"stage {entry.stage.name} failed: {last[0].strip()} (traceback in {log})")
