"""The pipeline as a user runs it: commands as processes of their own, and what their stores hold meanwhile."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hpe_core.system.files import read_json
from workflows.engine.config import REPO, load
from workflows.full_pipeline import NAMES
from workflows.tracking.server import client_of

CONFIG = "tests/tiny.yaml"
Moment = Callable[[Path], bool]
PLANTED = "planted-4f1c9e7a"  # as a password, in names that libraries read
PASSWORDS = ("AWS_SECRET_ACCESS_KEY", "GOOGLE_API_KEY", "HF_TOKEN", "GITHUB_TOKEN", "MLFLOW_TRACKING_PASSWORD")
KEPT = ("RAY_worker_niceness",)  # conftest.py says why
PATIENCE_S = 1800  # for one command on a slow machine that is busy with other things


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: this checkout first, this interpreter's tools first, no tokens unless asked for."""
    ours = {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith("RAY_")}
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    fixed = {"PYTHONPATH": str(REPO), "PATH": tools, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**ours, **fixed, **dict.fromkeys(PASSWORDS, PLANTED), **changes}


def words(verb: str, store: Path | str, *more: str) -> list[str]:
    """`python workflows/full_pipeline.py <verb> ... -c tests/tiny.yaml store=...`"""
    return [sys.executable, "workflows/full_pipeline.py", verb, f"store={store}", *more, "-c", CONFIG]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float


def run(verb: str, store: Path | str, *more: str, env: dict[str, str] | None = None) -> Done:
    """Run a verb to its end. On a cluster of its own, whatever else is running on this machine."""
    local = () if env else ("cluster.address=local",)
    return call(words(verb, store, *local, *more), env or environment())


def call(command: Sequence[str], env: dict[str, str]) -> Done:
    began = time.monotonic()
    with whole_tree() as start:
        process = start(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=PATIENCE_S)
    return Done(process.returncode, out, err, time.monotonic() - began)


@contextmanager
def whole_tree() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A way to start commands; whatever happens in the block, none of them is left behind."""
    started: list[subprocess.Popen[str]] = []

    def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(command, text=True, **{"cwd": REPO, "env": environment()} | options))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            if process.poll() is None:
                kill(family(process.pid))
                process.wait()


def family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL: as if the power had gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def wait_gone(processes: Sequence[psutil.Process], seconds: float = 60) -> None:
    """Wait until none of them runs: Ray's own processes notice a dead driver a little later."""
    kill(psutil.wait_procs(list(processes), timeout=seconds)[1])


def killed_when(
    moment: Moment, store: Path, log: Path, *more: str, everything: bool, meanwhile: Any = lambda pid: None
) -> bool:
    """Start the pipeline and SIGKILL it (the driver alone, or all its processes) as soon as `moment(store)` is true.

    Returns False where the run ended before that. `meanwhile` is called with the driver's pid until then.
    """
    with open(log, "w") as stream, whole_tree() as start:
        command = words("run", store, *more, "cluster.address=local")
        process = start(command, stdout=stream, stderr=stream, start_new_session=True)
        deadline = time.monotonic() + PATIENCE_S
        while not moment(store):
            if process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"the moment never came:\n{log.read_text()[-3000:]}"
            meanwhile(process.pid)
            time.sleep(0.02)
        processes = family(process.pid)
        kill(processes if everything else processes[:1])
        wait_gone(processes)
        process.wait()
    return True


def stage_folder(store: Path, name: str) -> Path:
    (folder,) = (store / name).iterdir()
    return folder


def result_of(store: Path, name: str) -> dict[str, Any]:
    manifest = read_json(stage_folder(store, name) / "manifest.json")
    assert manifest is not None, f"stage {name} has no manifest"
    return dict(manifest["result"])


def tail(done: Done) -> str:
    return f"exit code {done.code}\n{done.out[-2000:]}\n{done.err[-4000:]}"


def sound(done: Done) -> Done:
    assert done.code == 0, tail(done)
    return done


def has_shard(store: Path) -> bool:
    return any(store.glob("shards/*/heads.*/part-*.json"))


def has_checkpoint(store: Path) -> bool:
    """Ray Train's own list holds a checkpoint: what is resumed from."""
    for snapshot in store.glob("networks/*/ray-train/checkpoint_manager_snapshot.json"):
        with suppress(OSError, ValueError):  # read while it is being written
            if json.loads(snapshot.read_text()).get("checkpoint_results"):
                return True
    return False


def has_trial(store: Path) -> bool:
    return any(store.glob("search/*/tune/trial_*/checkpoint_*"))


def is_train_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "RayTrainWorker" in " ".join(process.cmdline())
    return False


def nothing_left(store: Path) -> None:
    leftovers = [*store.glob("networks/*/ray-train"), *store.glob("search/*/tune/*/checkpoint_*")]
    leftovers += store.glob("shards/*/*/.part-*")
    assert not leftovers, "finished networks and trials leave no checkpoints, finished shards no temporary files"


def runs_in(database: Path) -> tuple[Any, list[Any]]:
    """A client of MLflow's database and all runs in it."""
    client = client_of(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("head-pose")
    return client, list(client.search_runs([experiment.experiment_id], max_results=500))


def check_tracking(database: Path) -> None:
    """One parent, its stages below it, networks and trials below those, with metrics by step; a champion."""
    client, runs = runs_in(database)
    below: dict[str | None, list[Any]] = {}
    for entry in runs:
        below.setdefault(entry.data.tags.get("mlflow.parentRunId"), []).append(entry)
    (parent,) = below[None]
    assert parent.info.status == "FINISHED" and parent.data.params["teachers.resnet.net.backbone"] == "test_resnet"
    assert "heads/distilled/mae" in parent.data.metrics
    stages = {entry.info.run_name: entry for entry in below[parent.info.run_id]}
    assert sorted(stages) == sorted(NAMES)
    for name, entry in stages.items():
        assert entry.info.status == "FINISHED" and entry.data.metrics["seconds"] > 0, name
    spec = load([CONFIG])
    epochs = {"teachers": spec.teachers["resnet"].optim.epochs, "student": spec.student.optim.epochs}
    for name, networks in (("teachers", {"byobnet", "resnet"}), ("student", {"distilled", "hard"})):
        children = below[stages[name].info.run_id]
        assert {child.info.run_name for child in children} == {f"{name}: {network}" for network in networks}
        for child in children:
            assert child.info.status == "FINISHED" and child.data.params["optim.batch_size"] == "16"
            # An epoch whose checkpoint did not count when all was cut off is trained, and told, again; none is lost.
            steps = {point.step for point in client.get_metric_history(child.info.run_id, "val/mae")}
            assert steps == set(range(1, epochs[name] + 1)), child.info.run_name
    best = [child for child in below[stages["search"].info.run_id] if child.info.status == "FINISHED"]
    assert len(best) >= spec.search.trials
    for child in best:
        assert "optim.lr" in child.data.params and client.get_metric_history(child.info.run_id, "val/mae")
    champion = client.get_model_version_by_alias(spec.publish.model_name, spec.publish.alias)
    assert champion.run_id == stages["publish"].info.run_id
    assert client.list_artifacts(champion.run_id, "model"), "the version's files are there"
