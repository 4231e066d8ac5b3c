"""The whole road for real: a run that is killed and continued, and a second run that skips it all.

Every run is the command that a user types, in a process of its own with a Ray of its own. All laws are read off one
finished run, for a start of Ray costs more than these networks do. It was killed whole among its teachers and continued
by the same command. The longer tier cuts another one down in three stages, and compares its bytes with those of a run
that nobody stopped.
"""

import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from hpe_core.data.rows import read_shard, read_soft_labels, read_table
from hpe_core.system.files import read_json
from tests.test_commands import hears_ctrl_c
from tests.traced import STRACE, Seen, bare, needs_strace, read, watched
from workflows.engine.config import REPO, load
from workflows.engine.plan import plan
from workflows.full_pipeline import STAGES

CONFIG = "tests/tiny.yaml"
NAMES = [stage.name for stage in STAGES]
Moment = Callable[[Path], bool]
PLANTED = "planted-4f1c9e7a"  # as a password, in names that libraries read
PASSWORDS = ("AWS_SECRET_ACCESS_KEY", "GOOGLE_API_KEY", "HF_TOKEN", "GITHUB_TOKEN", "MLFLOW_TRACKING_PASSWORD")
PATIENCE_S = 600  # for one command on a machine that is busy with other things
pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: this checkout first, this interpreter's tools first, no tokens unless asked for."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
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


def run(verb: str, store: Path, *more: str, env: dict[str, str] | None = None) -> Done:
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


def killed_when(moment: Moment, store: Path, log: Path, *, everything: bool, meanwhile: Any = lambda pid: None) -> bool:
    """Start the pipeline and SIGKILL it (the driver alone, or all its processes) as soon as `moment(store)` is true.

    Returns False where the run ended before that. `meanwhile` is called with the driver's pid until then.
    """
    with open(log, "w") as stream, whole_tree() as start:
        command = words("run", store, "cluster.address=local")
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


@dataclass(frozen=True)
class Finished:
    store: Path
    done: Done  # the command that ended it
    cut: str  # what the killed command had said
    kept: dict[Path, int]  # what it had finished, and when


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that was killed whole as soon as a teacher had a checkpoint, and continued by the same command."""
    home = tmp_path_factory.mktemp("finished")
    store, log = home / "store", home / "log"
    assert killed_when(has_checkpoint, store, log, everything=True), log.read_text()
    kept = kept_state(store)
    return Finished(store, sound(run("run", store)), log.read_text(), kept)


def test_a_killed_run_is_continued_by_the_same_command(finished):
    """What was finished stays as it is, a teacher goes on from its checkpoint, and nothing is left lying about."""
    assert "shards: done in" in finished.cut and "teachers: done in" not in finished.cut
    assert len(finished.kept) > len(NAMES), "the shards with their receipts"
    untouched(finished.kept)
    actions = [line.split()[1] for line in finished.done.err.splitlines()[: len(NAMES)]]
    assert actions == ["skip", "continue", *["run"] * 5]
    nothing_left(finished.store)


def test_every_stage_leaves_a_manifest_and_the_table_has_every_network(finished):
    faces = {name: result_of(finished.store, name) for name in NAMES}["shards"]
    assert faces["kept"] + faces["quarantined"] + faces["filtered"] == faces["input"] == 108 and faces["filtered"]
    ensembles = ("teachers' ensemble", "offset ensemble", "combined ensemble")
    for network in ("byobnet", "resnet", *ensembles, "hard", "distilled"):
        (line,) = re.findall(rf"^{network}  .*$", finished.done.out, re.MULTILINE)
        assert len(re.findall(r"\d+\.\d\d", line)) >= 6, f"pitch, yaw, roll, MAE, geodesic and size in: {line}"
    (time_line,) = re.findall(r"^time .*$", finished.done.out, re.MULTILINE)
    (report,) = re.findall(r"^report +(\S+)$", finished.done.out, re.MULTILINE)
    assert Path(report).is_file() and time_line.endswith(" s")


def test_a_password_in_the_environment_is_in_no_line_and_no_file(finished):
    """Manifests, MLflow's database and artifacts, Tune's pickles, the report, the card, every exported file."""
    assert PLANTED not in finished.done.out + finished.done.err + finished.cut
    files = [path for path in finished.store.rglob("*") if path.is_file()]
    assert {"mlflow.db", "manifest.json", "report.html", "student.onnx"} <= {path.name for path in files}
    assert [path for path in files if PLANTED.encode() in path.read_bytes()] == []


def test_soft_labels_are_the_mean_of_all_teachers_over_all_windows(finished):
    import torch

    from hpe_core.learning.checkpoint import load_net

    torch.set_num_threads(1)  # on a busy machine threads of one sum wait for each other, a hundred times longer
    shards, labels = stage_folder(finished.store, "shards"), stage_folder(finished.store, "labels")
    nets = [load_net(stage_folder(finished.store, "teachers") / name).net for name in ("byobnet", "resnet")]
    crop = load([CONFIG]).data.crop
    files = sorted(shards.glob("heads.train/part-*.parquet"))
    sets = {2: "byobnet+resnet-K2-d2", 4: "byobnet+resnet-K4-d2"}
    assert result_of(finished.store, "labels")["sets"] == [*sets.values()] and len(files) >= 2
    for radius, name in sets.items():
        for file in files:
            shard = read_shard(file)
            found = read_soft_labels(labels / name / "heads.train" / file.name, shard.sample_ids)
        # The last shard by hand: every window cut out of the pixels, every network asked, all of it averaged.
        total, count = np.zeros(found.shape), 0
        for dy in range(-radius, radius + 1, 2):
            for dx in range(-radius, radius + 1, 2):
                top, left = crop.margin_px + dy, crop.margin_px + dx
                cut = shard.images[:, top : top + crop.size, left : left + crop.size].copy()
                for net in nets:
                    with torch.inference_mode():
                        total += net.predict(torch.from_numpy(cut)).double().numpy()
                    count += 1
        assert count == len(nets) * {2: 9, 4: 25}[radius]
        np.testing.assert_allclose(found.astype(float), np.log(total / count), rtol=1e-3, atol=1e-3)


def test_the_onnx_file_gives_the_degrees_that_were_scored(finished):
    import onnxruntime

    model = stage_folder(finished.store, "publish") / result_of(finished.store, "publish")["onnx"]
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    table = read_table(stage_folder(finished.store, "evaluate") / "predictions.parquet").to_pylist()
    scored = {row["sample_id"]: row for row in table if row["network"] == "distilled"}
    crop, seen = load([CONFIG]).data.crop, 0
    for file in sorted(stage_folder(finished.store, "shards").glob("heads.test/part-*.parquet")):
        shard = read_shard(file)
        middle = slice(crop.margin_px, crop.margin_px + crop.size)
        angles = session.run(["angles"], {"images": np.ascontiguousarray(shard.images[:, middle, middle])})[0]
        for sample_id, found, true in zip(shard.sample_ids, angles, shard.angles, strict=True):
            row = scored[sample_id]
            assert np.abs(found - [row["pitch"], row["yaw"], row["roll"]]).max() < 0.01
            assert np.abs(true - [row["true_pitch"], row["true_yaw"], row["true_roll"]]).max() < 1e-4
            seen += 1
    assert seen == len(scored) > 0


def runs_in(database: Path) -> tuple[Any, list[Any]]:
    """A client of MLflow's database and all runs in it."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{database}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
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


def test_mlflow_holds_parent_stages_networks_trials_and_the_champion(finished, tmp_path):
    """And all of it lies in the store: an MLflow that knows nothing is brought up to it."""
    check_tracking(finished.store / "mlflow.db")
    told = run("sync", finished.store)
    assert (told.code, told.out) == (0, "MLflow has all that the store says\n"), tail(told)
    told = run("sync", finished.store, f"mlflow.uri=sqlite:///{tmp_path / 'new.db'}")
    assert told.code == 0 and told.out.startswith("sent to MLflow: "), tail(told)
    check_tracking(tmp_path / "new.db")


def test_a_second_run_skips_everything_without_ray_or_torch(finished):
    script = (
        "import sys; from workflows.full_pipeline import main; code = main(sys.argv[1:])\n"
        "heavy = {'ray', 'mlflow', 'torch', 'timm'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    before = {path: path.stat().st_mtime_ns for path in finished.store.rglob("*")}
    again = sound(call([sys.executable, "-c", script, *words("run", finished.store)[2:]], environment()))
    lines = again.err.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    for line in lines:
        assert re.fullmatch(r"\w+ +skip +[0-9a-f]{12}  finished \d{4}-\d\d-\d\d [\d:]{8} in \d+ s", line), line
    assert "distilled" in again.out, "the table is printed again"
    assert {path: path.stat().st_mtime_ns for path in finished.store.rglob("*")} == before
    # 15 s is the promise for a machine of its own; what this process used says more on a busy one.
    assert again.seconds < 15 or os.getloadavg()[0] > 3, f"{again.seconds:.0f} s"


def test_plan_names_the_changed_key_and_what_depends_on_it(finished):
    def reasons(*overrides: str) -> dict[str, str]:
        entries = plan(STAGES, load([CONFIG], [f"store={finished.store}", *overrides]))
        return {entry.stage.name: entry.reason for entry in entries if entry.action != "skip"}

    assert reasons() == {}
    assert reasons("student.distill.hard_weight=0.5") == {
        "search": "student.distill.hard_weight 0.05 -> 0.5",
        "student": "student.distill.hard_weight 0.05 -> 0.5; search changed",
        "evaluate": "student changed",
        "publish": "search changed; student changed; evaluate changed",
    }
    typed = call(words("plan", finished.store, "data.limit_deg=71"), environment())
    assert typed.code == 0 and "data.limit_deg 70.0 -> 71.0" in typed.out.splitlines()[0], tail(typed)
    *stages, whole = typed.out.splitlines()
    assert [line.split()[1] for line in stages] == ["run"] * len(NAMES) and all("; took " in line for line in stages)
    assert re.fullmatch(r"to run +7 stages; 7 of them took \d+ s when they last ran in this store", whole)


def has_shard(store: Path) -> bool:
    return any(store.glob("shards/*/heads.*/part-*.json"))


def has_checkpoint(store: Path) -> bool:
    """Ray Train's own list holds a checkpoint: what is resumed from."""
    for snapshot in store.glob("networks/*/ray-train/checkpoint_manager_snapshot.json"):
        with suppress(OSError, ValueError):  # read while it is being written
            if json.loads(snapshot.read_text()).get("checkpoint_results"):
                return True
    return False


def has_label(store: Path) -> bool:
    return any(store.glob("labels/*/*/heads.train/part-*.json"))


def has_trial(store: Path) -> bool:
    return any(store.glob("search/*/tune/trial_*/checkpoint_*"))


def has_settings(store: Path) -> bool:
    """Tune has written its settings, and perhaps nothing else."""
    return any(store.glob("search/*/tune/tuner.pkl"))


def kept_state(store: Path) -> dict[Path, int]:
    """Finished work: receipts with their files, finished networks, manifests -> when they were written."""
    done = [*store.glob("shards/*/*/part-*.json"), *store.glob("labels/*/*/*/part-*.json")]
    done += [path.with_suffix(".parquet") for path in done]
    done += [*store.glob("networks/*/result.json"), *store.glob("*/*/manifest.json")]
    return {path: path.stat().st_mtime_ns for path in done if path.exists()}


def untouched(before: dict[Path, int]) -> None:
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written, f"{path} was finished and has been done again"


class WorkerKiller:
    """SIGKILLs one Ray Train worker, a moment after it came up: Ray Train has to go on by itself."""

    def __init__(self) -> None:
        self.seen: psutil.Process | None = None
        self.killed = False
        self.next = 0.0

    def __call__(self, driver: int) -> None:
        if self.killed or time.monotonic() < self.next:
            return
        if self.seen is not None and self.seen.is_running():
            kill([self.seen])
            self.killed = True
        self.seen = next(filter(is_train_worker, family(driver)), None)
        self.next = time.monotonic() + (0.1 if self.seen is None else 1.5)


def is_train_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "RayTrainWorker" in " ".join(process.cmdline())
    return False


@pytest.fixture(scope="session")
def calm(killed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that nobody stopped: the other one's, once more from its receipt.

    In a home of its own, watched where strace is there.
    """
    folder = tmp_path_factory.mktemp("calm")
    command = [sys.executable, "workflows/reproduce.py", str(killed), f"store={folder / 'store'}"]
    env = bare(folder / "home")
    done = call(watched(command, folder / "trace.txt") if STRACE else command, env)
    assert done.code in (0, 1) and (folder / "store" / "reproduced.json").is_file(), tail(done)
    return folder / "store"


@needs_strace
def test_a_whole_run_is_nobodys_business(calm):
    """Shards, training, a sweep, tables, export and MLflow, in every process of them and of Ray's."""
    assert read(calm.parent / "home", calm.parent / "trace.txt") == Seen([], [])


def same_result(store: Path, calm: Path) -> None:
    """A run that was killed made the bytes of the run that was not."""
    ours, theirs = stage_folder(store, "shards"), stage_folder(calm, "shards")
    shards = sorted(path.relative_to(theirs) for path in theirs.glob("*/part-*.parquet"))
    assert shards == sorted(path.relative_to(ours) for path in ours.glob("*/part-*.parquet"))
    for path in shards:
        assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path
    for name in ("byobnet", "resnet"):
        weights = [stage_folder(place, "teachers") / name / "model.safetensors" for place in (store, calm)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), f"teacher {name} has other weights"
    labels = [result_of(place, "labels")["fingerprint"] for place in (store, calm)]
    assert labels[0] == labels[1]
    nothing_left(store)


def nothing_left(store: Path) -> None:
    leftovers = [*store.glob("networks/*/ray-train"), *store.glob("shards/*/*/.part-*")]
    assert not leftovers, "finished networks leave no checkpoints, finished shards no temporary files"


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the shards the driver dies, among the teachers everything, then one worker, and in the search the driver."""
    home = tmp_path_factory.mktemp("killed")
    store, log = home / "store", home / "log"
    assert killed_when(has_shard, store, log, everything=False), log.read_text()
    first = kept_state(store)
    assert first and not (store / "teachers").exists()
    assert killed_when(has_checkpoint, store, log, everything=True), log.read_text()
    untouched(first)
    second = kept_state(store)
    assert len(second) > len(first) and (stage_folder(store, "shards") / "manifest.json").exists()
    assert "shards: continuing (was cut off)" in log.read_text()
    killer = WorkerKiller()
    assert killed_when(has_settings, store, log, everything=False, meanwhile=killer), log.read_text()
    assert killer.killed and log.read_text().count("teachers: done in") == 1, log.read_text()
    untouched(second)
    third = kept_state(store)
    assert (stage_folder(store, "labels") / "manifest.json").exists() and not list(store.glob("search/*/manifest.json"))
    done = sound(run("run", store))
    assert [line.split()[1] for line in done.err.splitlines()[:5]] == ["skip"] * 3 + ["continue", "run"]
    untouched(third)
    return store


def test_a_run_that_is_killed_again_and_again_is_the_run_that_nobody_stopped(killed, calm):
    """Its receipt reproduces it, to the last figure of the search and of the table."""
    same_result(killed, calm)
    check_tracking(killed / "mlflow.db")
    check_tracking(calm / "mlflow.db")
    told = read_json(calm / "reproduced.json") or {}
    assert (told["reproduced"], told["differences"], told["tolerance_deg"]) == (True, [], 0.0), told
    assert {part["stage"] for part in told["parts"]} == {*NAMES, "table"} - {"evaluate", "publish"}
    assert [part for part in told["parts"] if not part["same"]] == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(4))
def test_soak(calm, tmp_path, seed):
    """Killed at many moments, drawn at random, driver or everything, until a run gets to its end."""
    dice = random.Random(seed)
    store, log = tmp_path / "store", tmp_path / "log"
    named = [has_shard, has_checkpoint, has_label, has_settings, has_trial]
    for _ in range(8):
        before = kept_state(store)
        moment = dice.choice(named)
        until = time.monotonic() + dice.uniform(5, 60)

        def soon(store: Path, moment: Moment = moment, until: float = until) -> bool:
            return time.monotonic() > until and (moment(store) or time.monotonic() > until + 30)

        ended = not killed_when(soon, store, log, everything=dice.random() < 0.5)
        untouched(before)
        if ended:
            break
    sound(run("run", store))
    same_result(store, calm)


def test_state_that_a_kill_has_torn_is_not_restored(tmp_path):
    """Ray writes its lists in place: half a file must mean a new start, not an error for ever."""
    from workflows.stages.search import restorable
    from workflows.training.networks import discard_torn

    snapshot = tmp_path / "ray-train" / "checkpoint_manager_snapshot.json"
    snapshot.parent.mkdir()
    discard_torn(snapshot.parent)
    snapshot.write_text('{"checkpoint_results": []}')
    discard_torn(snapshot.parent)
    assert snapshot.exists()
    for torn in ("", '{"checkpoint_res'):
        snapshot.parent.mkdir(exist_ok=True)
        snapshot.write_text(torn)
        discard_torn(snapshot.parent)
        assert not snapshot.parent.exists()

    def state(statuses: dict[str, str], errors: dict[str, float], counter: int = 2) -> dict[str, bytes]:
        """Tune's four files: the trials "a" and "b" with their statuses, and what the searcher knows of them."""
        trials = [[json.dumps({"trial_id": name, "status": status}), "{}"] for name, status in statuses.items()]
        return {
            "tuner.pkl": pickle.dumps(None),
            "experiment_state-2026.json": json.dumps({"trial_data": trials}).encode(),
            "search_gen_state-2026.json": pickle.dumps({"counter": counter}),
            "searcher-state-2026.pkl": pickle.dumps((["a", "b"], errors)),
        }

    def restored(files: dict[str, bytes]) -> bool:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return restorable(folder)

    half = {"a": "TERMINATED", "b": "RUNNING"}
    whole = state(half, {"a": 1.0})
    assert restored(whole)
    for name in whole:
        for body in (None, b"", b"\x80\x05", b'{"a"'):
            others = {other: content for other, content in whole.items() if other != name}
            assert not restored(others if body is None else others | {name: body}), (name, body)
    # One file is newer than another: Tune would wait for a trial for ever, or leave one out.
    assert not restored(state(half, {})), "Tune knows an end that the searcher does not"
    assert not restored(state({"a": "TERMINATED"}, {"a": 1.0})), "the searcher knows a trial that Tune does not"
    assert not restored(state(half | {"c": "RUNNING"}, {"a": 1.0}))
    assert not restored(state(half, {"a": 1.0}, counter=1))


@pytest.mark.longer
@pytest.mark.parametrize(
    ("finished_before", "moment", "sent"),
    [
        ([], lambda store: (store / "shards").exists(), [signal.SIGTERM]),
        (NAMES[: NAMES.index("search")], has_trial, [signal.SIGINT, signal.SIGINT]),
    ],
)
def test_signals_end_a_run_with_one_sentence(calm, tmp_path, finished_before, moment, sent):
    """SIGTERM, as a scheduler sends it, is no kill: the run says how to go on and leaves no process behind. Neither is
    Ctrl-C in the search, which Ray would take for the end of all trials; nor is a second one at once."""
    store = tmp_path / "store"
    for name in finished_before:
        shutil.copytree(calm / name, store / name)
    with whole_tree() as start:
        command = words("run", store, "cluster.address=local")
        process = start(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=hears_ctrl_c)
        deadline = time.monotonic() + 120
        while not moment(store) and time.monotonic() < deadline:
            time.sleep(0.05)
        processes = family(process.pid)
        for number in sent:
            process.send_signal(number)
            time.sleep(0.3)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.splitlines()[-1] == "stopped; the same command continues from here", err
    wait_gone(processes, 20)
    assert "Traceback" not in err and not list(store.glob("search/*/manifest.json"))
