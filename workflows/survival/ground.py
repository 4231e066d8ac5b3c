"""What drills stand on: the configuration's commands as processes of their own, stores of their own, one cluster.

Nothing here knows what goes wrong. Whatever is started is ended with the ground, also when the campaign is interrupted.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hpe_core.errors import say
from workflows.full_pipeline import NAMES as STAGES
from workflows.reproduction.receipt import Receipt
from workflows.storage.begun import NETWORKS, RESULT
from workflows.storage.code import ROOT, python_path
from workflows.storage.contents import MANIFEST
from workflows.storage.manifest import read_manifest

PATIENCE_S = 900.0  # for one command
LOG = "command.log"


class Lost(Exception):
    """A drill did not come back as it should have; the message says what was lost."""


def expect(condition: bool, said: str) -> None:
    if not condition:
        raise Lost(said)


@dataclass(eq=False)
class Command:
    """A command that runs, or has ended. Its words go to a file beside its store."""

    process: subprocess.Popen[bytes]
    log: Path
    began: float

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def runs(self) -> bool:
        return self.process.poll() is None

    def wait(self) -> int:
        """Its exit code. Raises Lost if it takes longer than a command may."""
        try:
            return self.process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill(tree=True)
            raise Lost(f"the command did not end in {PATIENCE_S:.0f} s: {last(self.text)}") from None

    def sound(self) -> "Command":
        """Wait. Raises Lost unless it ends well."""
        code = self.wait()
        expect(code == 0, f"exit code {code}: {last(self.text)}")
        return self

    def kill(self, *, tree: bool = False) -> None:
        """SIGKILL: as if the power had gone. With `tree` also what it has started."""
        victims = [self.process.pid]
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.process.pid).children(recursive=True) if tree else []
            victims += [child.pid for child in below]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def last(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was said")


@dataclass(eq=False)
class Ground(contextlib.AbstractContextManager["Ground"]):
    """The campaign's configuration (`files`, `words`), its folder, its cluster and its lot."""

    files: Sequence[str]
    words: Sequence[str]
    home: Path
    address: str
    dice: random.Random
    started: list[Command] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # that each stage took undisturbed

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """End whatever still runs."""
        for command in self.started:
            if command.runs():
                command.kill(tree=True)

    def clear(self, drill: str) -> None:
        """Remove the stores and faces of a drill; the words of its commands stay."""
        for place in self.home.iterdir():
            if place.is_dir() and drill in (place.name, *place.name.split("-")):
                shutil.rmtree(place)

    def store(self, name: str) -> Path:
        """A drill's own store, empty."""
        place = self.home / name
        shutil.rmtree(place, ignore_errors=True)
        place.with_name(f"{name}.{LOG}").unlink(missing_ok=True)
        place.mkdir(parents=True)
        return place

    def start(
        self, verb: str, store: Path, *words: str, files: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> Command:
        """A verb of the pipeline on a store; `words` and `files` are laid over the campaign's."""
        command = [sys.executable, str(ROOT / "workflows" / "full_pipeline.py"), verb, *self.words]
        command += [f"cluster.address={self.address}", f"store={store}", "mlflow.uri=", *words]
        for file in (*self.files, *files):
            command += ["-c", file]
        return self.begin(command, store.with_name(f"{store.name}.{LOG}"), env)

    def begin(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Command:
        """Any command, its words added to `log`."""
        whole = {**os.environ, "PYTHONPATH": python_path(ROOT), **(env or {})}
        with log.open("ab") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream, env=whole)
        self.started.append(Command(process, log, time.time()))
        return self.started[-1]

    def run(self, verb: str, store: Path, *words: str, **more: Any) -> Command:
        return self.start(verb, store, *words, **more).sound()

    @property
    def reference(self) -> Path:
        """The store of the run that nobody disturbed."""
        return self.home / "undisturbed"

    def prepared(self, name: str, before: str) -> Path:
        """A store in which everything above the stage `before` is finished already, as in the undisturbed run."""
        store = self.store(name)
        for stage in STAGES[: STAGES.index(before)]:
            shutil.copytree(self.reference / stage, store / stage)
        return store

    def until(self, command: Command, moment: Callable[[], bool]) -> bool:
        """Wait for a moment; False where the command has ended before."""
        deadline = time.monotonic() + PATIENCE_S
        while not moment():
            if not command.runs():
                return False
            expect(time.monotonic() < deadline, "the moment never came")
            time.sleep(0.02)
        return True

    def inside(self, store: Path, stage: str, share: tuple[float, float] = (0.1, 0.8)) -> Callable[[], bool]:
        """A moment by lot while a stage runs: at a part of the time that it took undisturbed."""
        delay, seen = self.dice.uniform(*share) * self.seconds[stage], list[float]()

        def moment() -> bool:
            if not seen and begun(store, stage):
                seen.append(time.monotonic())
            return bool(seen) and time.monotonic() - seen[0] >= delay

        return moment


def begun(store: Path, stage: str) -> bool:
    return any(folder.is_dir() for folder in (store / stage).glob("*"))


def finished(store: Path, stage: str) -> bool:
    return any((store / stage).glob(f"*/{MANIFEST}"))


def made_in(store: Path) -> Receipt:
    """The receipt of what has been finished in a store of one configuration."""
    manifests = ((stage, read_manifest(folder)) for stage in STAGES for folder in (store / stage).glob("*"))
    return Receipt(store.name, "", {stage: manifest for stage, manifest in manifests if manifest})


def kept(store: Path) -> dict[Path, int]:
    """Finished work, and when it was written: pieces with their receipts, networks, manifests."""
    pieces = [*store.glob("shards/*/*/part-*.json"), *store.glob("labels/*/*/*/part-*.json")]
    pieces += [path.with_suffix(".parquet") for path in pieces]
    done = [*pieces, *store.glob(f"{NETWORKS}/*/{RESULT}"), *store.glob(f"*/*/{MANIFEST}")]
    return {path: path.stat().st_mtime_ns for path in done if path.exists()}


def expect_untouched(before: Mapping[Path, int]) -> None:
    """Raises Lost where finished work was done again."""
    for path, written in before.items():
        expect(path.is_file(), f"{path.name} of {path.parent.name} was finished and is gone")
        expect(path.stat().st_mtime_ns == written, f"{path.parent.name}/{path.name} was finished and was made again")


def back_after(store: Path, hit: float) -> float | None:
    """Seconds from a fault to the first file of the store that is newer, whoever wrote it."""
    later = []
    for place in (*STAGES, "networks"):
        for path in (store / place).rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and (written := path.stat().st_mtime) > hit:
                    later.append(written - hit)
    return min(later, default=None)


def report(text: str) -> None:
    say(f"survive: {text}")
