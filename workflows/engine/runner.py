"""The driver's side of a run: cluster, progress board, console and tracker, opened together and closed in order."""

import contextlib
import dataclasses
import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hpe_core.errors import UserError
from hpe_core.spec.cluster import STAGES
from hpe_core.spec.serde import to_dict
from hpe_core.system.disk import disk_is_full, files_are_limited, size
from hpe_core.system.files import write_atomic, write_json
from workflows.engine.cluster.connection import capacity, connected, machinery, made_by
from workflows.engine.cluster.placement import placed
from workflows.engine.config import as_yaml
from workflows.engine.plan import Planned
from workflows.engine.results import StageResult
from workflows.engine.stage import StageFailed, StageRun
from workflows.engine.store import Plan, Store, result_of
from workflows.engine.told import children, run_name, run_points, run_tags, stage_facts
from workflows.storage.begun import note_begun
from workflows.storage.code import ROOT
from workflows.storage.manifest import finished, now
from workflows.tracking.console import Console
from workflows.tracking.facts import Artifact, RunFacts, Status, git_commit
from workflows.tracking.live import Live
from workflows.tracking.progress import Event, Pump, Reporter, now_ms, start_board
from workflows.tracking.projection import facts_of

FAILED = "failed.json"  # why a stage has failed, until it runs again
DOING = {"run": "starting", "continue": "continuing", "repair": "repairing"}


class Runner(contextlib.AbstractContextManager["Runner"]):
    """Runs stages of a store that is held, and writes down what they have to say."""

    def __init__(self, store: Store, planned: Plan, running: Sequence[str]) -> None:
        self.store, self.spec, self.planned, self.running = store, store.spec, planned, running
        key = f"pipeline/{list(planned.values())[-1].hash}"
        self.number = {name: f"{i}/{len(planned)}" for i, name in enumerate(planned, start=1)}
        self.home = self.spec.folder / key
        self.run_facts = RunFacts(
            key=key,
            name=self.spec.name,
            started_ms=now_ms(),
            params=to_dict(self.spec),
            tags={"commit": git_commit(ROOT), "config": self.spec.name},
            artifacts=(Artifact("config.yaml"),),
        )

    def __enter__(self) -> "Runner":
        self.console = Console()
        write_atomic(self.home / "config.yaml", as_yaml(self.spec))
        for entry in self.planned.values():
            if entry.action == "skip":
                self.learn(entry)
        self.tell()
        with contextlib.ExitStack() as opened:  # what is open is closed again if the rest cannot be opened
            self.live = Live(
                self.spec.folder,
                self.spec.tracking_uri,
                self.spec.mlflow.experiment,
                lambda: facts_of(self.spec.folder, held=True),
                say=self.console.say,
            )
            opened.push(self.closing)
            self.console.say(opened.enter_context(connected(self.spec.cluster)))
            self.machinery = machinery()
            there = capacity(self.spec.cluster)
            # What does not fit is said before anything starts.
            self.placed = {name: placed(self.spec, name, there) for name in self.running if name in STAGES}
            actor, self.reporter = start_board()
            self.pump = Pump(actor, self.handle)
            opened.callback(self.pump.close)
            self.exit = opened.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.exit.__exit__(kind, error, trace)

    def closing(self, kind: type[BaseException] | None, *rest: object) -> None:
        """The run has ended: MLflow is brought up to the store, or the user is told how."""
        stopped = kind is not None and not issubclass(kind, Exception)
        self.tell("FINISHED" if kind is None else "KILLED" if stopped else "FAILED")
        if behind := self.live.close():
            self.console.say(behind)

    @cached_property
    def made_by(self) -> dict[str, Any]:
        """The commit, and what else decides a result's last bits; asked when the first stage is done."""
        return {"commit": self.run_facts.tags["commit"], **made_by()}

    def learn(self, entry: Planned) -> None:
        """What a finished stage says of the whole run; by whichever run it is said again, it has the same time."""
        result, time_ms = result_of(entry.stage, entry.folder), finished(entry.folder)["told"]["ended_ms"]
        points, tags = run_points(result, time_ms), {**self.run_facts.tags, **run_tags(result)}
        self.run_facts = dataclasses.replace(self.run_facts, points=(*self.run_facts.points, *points), tags=tags)

    def tell(self, status: Status = "RUNNING") -> None:
        """Write down how the whole run stands."""
        ended_ms = None if status == "RUNNING" else max(now_ms(), self.run_facts.started_ms)
        self.run_facts = dataclasses.replace(self.run_facts, status=status, ended_ms=ended_ms)
        named = dataclasses.replace(self.run_facts, name=run_name(self.spec, self.run_facts.tags))
        keys = {entry.key: entry.action for entry in self.planned.values()}
        tree = {
            **named.to_json(),
            "stages": list(keys),
            "reused": [key for key, action in keys.items() if action == "skip"],
            "pid": os.getpid(),
            "host": platform.node(),
        }
        write_json(self.home / "run.json", tree)

    def run(self, entry: Planned) -> None:
        """One stage, from its line on the console to its manifest. Raises StageFailed, and UserError as it is."""
        name, began, clock = entry.stage.name, now_ms(), time.monotonic()
        self.console.enter(f"{name} {self.number[name]}")
        self.console.say(f"{name}: {DOING[entry.action]} ({entry.reason})")
        if name in self.placed:
            self.console.say(f"  {self.placed[name].line}")
        (entry.folder / FAILED).unlink(missing_ok=True)
        entry.folder.mkdir(parents=True, exist_ok=True)
        self.live.sync()

        def ended() -> int:
            """By the time that has passed: the clock may have been set meanwhile."""
            return began + round(1000 * (time.monotonic() - clock))

        def note(result: StageResult) -> dict[str, Any]:
            self.pump.flush()
            told = stage_facts(entry, result, self.run_facts.key, began, ended())
            members = [member.to_json() for member in children(entry, result, self.spec)]
            return {"machinery": self.machinery, "made_by": self.made_by, "told": told.to_json(), "children": members}

        try:
            result, changed = execute(self.store, self.planned, entry, self.reporter, note)
        except Exception as error:
            told = stage_facts(entry, None, self.run_facts.key, began, ended()).to_json()
            own = own_sentence(error)
            reason = own or explained(error, entry)
            write_json(entry.folder / FAILED, {"error": str(reason), "time_ms": now_ms(), "told": told})
            raise reason from (None if own else error)
        self.learn(entry)
        self.tell()
        self.live.sync()
        for sentence in changed:
            self.console.say(sentence)
        said = result.headline()
        self.console.say(f"{name}: done in {time.monotonic() - clock:.0f} s{'; ' if said else ''}{said}")

    def handle(self, event: Event) -> None:
        """One event from the board: to the console, or to MLflow as it is now."""
        kind, words = event
        getattr(self.console if kind in ("progress", "say") else self.live, kind)(*words)


def execute(
    store: Store,
    planned: Plan,
    entry: Planned,
    reporter: Reporter,
    note: Callable[[StageResult], Mapping[str, Any]] = lambda result: {},
) -> tuple[StageResult, list[str]]:
    """Run a stage in its folder and commit what it made. Returns the result, and a sentence for files that changed."""
    entry.folder.mkdir(parents=True, exist_ok=True)
    note_begun(entry.folder, entry.parts)
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
    noted = {"started": started, "seconds": time.monotonic() - clock, **note(result)}
    return result, store.commit(entry, result, noted)


def own_sentence(error: Exception) -> UserError | StageFailed | None:
    """What a worker raised, or the error, if it already is one sentence for the user."""
    known = (getattr(error, "cause", None), error)
    return next((one for one in known if isinstance(one, UserError | StageFailed)), None)


def explained(error: Exception, entry: Planned) -> StageFailed:
    """What went wrong, in one sentence; its traceback goes into the folder, unless the disk is what is wrong."""
    if disk_is_full(error):
        free = size(shutil.disk_usage(entry.folder).free)
        return StageFailed(
            f"stage {entry.stage.name} failed: the disk of {entry.folder} is full ({free} free); what is finished is "
            "kept, make room and the same command continues"
        )
    if files_are_limited(error):
        return StageFailed(
            f"stage {entry.stage.name} failed: a file of {entry.folder} may not grow further (ulimit -f, or what its "
            "filesystem allows); what is finished is kept, lift the limit and the same command continues"
        )
    log: Path = entry.folder / "error.txt"
    log.write_text("".join(traceback.format_exception(error)))
    last = [line for line in str(error).splitlines() if line.strip()][-1:] or [type(error).__name__]
    return StageFailed(f"stage {entry.stage.name} failed: {last[0].strip()} (traceback in {log})")
