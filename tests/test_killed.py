"""A run that is killed again and again is the run that nobody stopped; and signals that are no kill."""

import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hpe_core.system.files import read_json
from tests.road import (
    NAMES,
    call,
    check_tracking,
    family,
    has_checkpoint,
    has_shard,
    has_trial,
    is_train_worker,
    kill,
    killed_when,
    nothing_left,
    result_of,
    run,
    sound,
    stage_folder,
    tail,
    whole_tree,
    words,
)
from tests.test_commands import hears_ctrl_c
from tests.traced import STRACE, Seen, bare, needs_strace, read, watched
from workflows.survival.ground import expect_untouched, kept

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]


# All rows come as a stream of Ray Data, and two workers share a teacher; in `test_pipeline.py` neither is so.
STREAMED = ("data.ingest=ray_data", "data.stream_shards=2", "cluster.stages.teachers.workers=2")


def is_reader(process: psutil.Process) -> bool:
    """A task of the stream while it reads: Ray names the process by what it does."""
    with suppress(psutil.Error):
        return "read_groups" in " ".join(process.cmdline())
    return False


class Killer:
    """SIGKILLs a Ray Train worker and a reading task, once there is a checkpoint: Ray has to go on by itself."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.left = {"reader": is_reader, "worker": is_train_worker}

    def __call__(self, driver: int) -> None:
        for name, wanted in list(self.left.items()):
            victim = next(filter(wanted, family(driver)), None) if has_checkpoint(self.store) else None
            if victim is not None:
                with suppress(psutil.NoSuchProcess):  # it has ended by itself: the next one, then
                    victim.kill()
                    del self.left[name]


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the shards the driver dies, among the teachers a worker and a reader, and in the search the driver again.

    `test_pipeline.py` kills everything at once among the teachers.
    """
    home = tmp_path_factory.mktemp("killed")
    store, log = home / "store", home / "log"
    assert killed_when(has_shard, store, log, *STREAMED, everything=False), log.read_text()
    first = kept(store)
    assert first and not (store / "teachers").exists()
    killer = Killer(store)
    assert killed_when(has_trial, store, log, *STREAMED, everything=False, meanwhile=killer), log.read_text()
    assert "shards: continuing (was cut off)" in log.read_text()
    assert not killer.left and log.read_text().count("teachers: done in") == 1, log.read_text()
    expect_untouched(first)
    second = kept(store)
    assert len(second) > len(first)
    assert (stage_folder(store, "labels") / "manifest.json").exists() and not list(store.glob("search/*/manifest.json"))
    done = sound(run("run", store, *STREAMED))
    assert [line.split()[1] for line in done.err.splitlines()[:5]] == ["skip"] * 3 + ["continue", "run"]
    expect_untouched(second)
    return store


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


def test_a_run_that_is_killed_again_and_again_is_the_run_that_nobody_stopped(killed, calm):
    """Its receipt reproduces it, to the last figure of the search and of the table."""
    same_result(killed, calm)
    check_tracking(killed / "mlflow.db")
    check_tracking(calm / "mlflow.db")
    told = read_json(calm / "reproduced.json") or {}
    assert (told["reproduced"], told["differences"], told["tolerance_deg"]) == (True, [], 0.0), told
    assert {part["stage"] for part in told["parts"]} == {*NAMES, "table"} - {"evaluate", "publish"}
    assert [part for part in told["parts"] if not part["same"]] == []


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
        command = words("run", store, *STREAMED, "cluster.address=local")
        process = start(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=hears_ctrl_c)
        deadline = time.monotonic() + 120
        while not moment(store) and time.monotonic() < deadline:
            time.sleep(0.05)
        processes = family(process.pid)
        for number in sent:
            process.send_signal(number)
            time.sleep(0.3)
        _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and err.splitlines()[-1] == "stopped; the same command continues from here", err
    left = psutil.wait_procs(processes, timeout=20)[1]
    kill(left)
    assert left == [], "no process is left behind"
    assert "Traceback" not in err and not list(store.glob("search/*/manifest.json"))
