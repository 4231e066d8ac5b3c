"""Drills on the road: a process, a node, a file, a server or the disk goes while a stage runs.

Each begins from what the undisturbed run had finished before that stage, and must come to the same bytes and table.
"""

import http.server
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from workflows.engine.config import EXIT_FAILED, EXIT_STORE_HELD
from workflows.full_pipeline import NAMES as STAGES
from workflows.storage.code import ROOT, python_path
from workflows.storage.contents import MANIFEST
from workflows.survival.compared import expect_same
from workflows.survival.ground import Ground, Lost, back_after, begun, expect, expect_untouched, finished, kept, last
from workflows.survival.nodes import Cluster
from workflows.survival.told import Hit
from workflows.tracking.server import make_database, prepare

FILE_LIMIT = 8_000  # bytes that no file of the limited processes may exceed: less than a shard
SYNCED = "sent to MLflow"
TRIES = 4  # of a drill whose victim was quicker than its moment


def worker(ground: Ground, cluster: Cluster) -> list[Hit]:
    """A training worker of a teacher is killed after a first checkpoint."""
    return one_actor(ground, cluster, "worker", "teachers", "RayTrainWorker", "networks/*/ray-train/checkpoint_*")


def labeller(ground: Ground, cluster: Cluster) -> list[Hit]:
    """An actor that writes soft labels is killed after a first piece."""
    return one_actor(ground, cluster, "labeller", "labels", "LabelShard", "labels/*/*/*/part-*.json")


def memory(ground: Ground, cluster: Cluster) -> list[Hit]:
    """A Tune trial is ended after a first epoch as the kernel ends what takes too much memory: by SIGKILL.

    Its trials are longer, so that they can be met half-way, and are compared with such trials undisturbed.
    """
    words = ("search.epochs=16", "search.grace_epochs=16")
    calm = ground.prepared("memory-calm", before="search")
    ground.run("search", calm, *words)
    at_work = "search/*/trials/*.json"
    return one_actor(ground, cluster, "memory", "search", "ImplicitFunc", at_work, words, calm)


def one_actor(
    ground: Ground,
    cluster: Cluster,
    name: str,
    stage: str,
    kind: str,
    at_work: str,
    words: Sequence[str] = (),
    reference: Path | None = None,
) -> list[Hit]:
    """Kill an actor of this kind a moment after a first file `at_work` is there; the stage goes on by itself."""
    delay = ground.dice.uniform(0, 0.5)
    for _ in range(TRIES):
        store = ground.prepared(name, before=stage)
        command = ground.start(stage, store, *words)
        when: float | None = None
        if ground.until(command, lambda place=store: any(place.glob(at_work))):  # type: ignore[misc]
            time.sleep(delay)
            if victim := cluster.victim(command, kind):
                when = cluster.kill(victim)
        command.sound()
        if when is not None and all(file.stat().st_mtime > when for file in store.glob(f"{stage}/*/{MANIFEST}")):
            expect_same(store, reference or ground.reference, [stage])
            return [Hit(f"{stage}, {delay:.1f} s after a first piece of work", kind, back_after(store, when))]
        delay /= 2  # it had gone before its moment
    raise Lost(f"in {TRIES} runs no {kind} was still at work {delay:.2f} s after its first piece")


def node(ground: Ground, cluster: Cluster) -> list[Hit]:
    """A node goes while shards are written, another while teachers learn, another while labels are written."""
    store, hits = ground.store("node"), []
    command = ground.start("run", store)
    for stage in ("shards", "teachers", "labels"):
        reached = ground.until(command, ground.inside(store, stage, (0.2, 0.7)))
        expect(reached, f"the run ended before {stage}: {last(command.text)}")
        running = [one for one in STAGES if begun(store, one) and not finished(store, one)]
        hits.append((", ".join(running) or f"after {stage}", cluster.lose_node()))
    command.sound()
    expect_same(store, ground.reference, STAGES[:-1])
    return [Hit(moment, "a node", back_after(store, when)) for moment, when in hits]


def borders(ground: Ground, cluster: Cluster) -> list[Hit]:
    """The driver is killed as soon as a stage has its manifest, once for each stage."""
    store = ground.store("borders")
    return driver_again_and_again(ground, store, lambda stage: lambda: finished(store, stage), STAGES[:-1], "after")


def inside(ground: Ground, cluster: Cluster) -> list[Hit]:
    """The driver is killed inside each stage, at a moment by lot."""
    store = ground.store("inside")
    return driver_again_and_again(ground, store, lambda stage: ground.inside(store, stage), STAGES, "inside")


def driver_again_and_again(
    ground: Ground, store: Path, moment: Callable[[str], Callable[[], bool]], stages: Sequence[str], where: str
) -> list[Hit]:
    """Kill the driver at each stage's moment, and start it again; what was finished must stay as it is."""
    hits, done, command = list[Hit](), dict[Path, int](), ground.start("run", store)
    for stage in stages:
        reached = ground.until(command, moment(stage))
        if not reached:
            said = f"the run ended before its moment {where} {stage}: {last(command.text)}"
            expect(command.wait() == 0 and stage == STAGES[-1], said)
            break  # the last stage was quicker this time than its moment
        over = " (over by then)" if where == "inside" and finished(store, stage) else ""
        expect_untouched(done)
        done = kept(store)
        command.kill()
        when = time.time()
        command = ground.start("run", store)
        ground.until(command, lambda since=when: back_after(store, since) is not None)  # type: ignore[misc]
        hits.append(Hit(f"{where} {stage}{over}", "the driver", back_after(store, when)))
    command.sound()
    expect_untouched(done)
    expect_same(store, ground.reference, STAGES[:-1])
    return hits


def places(ground: Ground, cluster: Cluster) -> list[Hit]:
    """Shards and labels once more on clusters of one place, of two, and of four."""
    for count in (1, 2, 4):
        store = ground.store(f"places-{count}")
        words = ("cluster.address=local", f"cluster.local_cpus={count}")
        ground.run("shards", store, *words)
        shutil.copytree(ground.reference / "teachers", store / "teachers")
        ground.run("labels", store, *words)
        expect_same(store, ground.reference, ("shards", "labels"))
    return [Hit("shards and labels", "1, 2 and 4 places", None)]


def disk(ground: Ground, cluster: Cluster) -> list[Hit]:
    """No file of the command's processes may grow beyond a few kilobytes: every shard meets it as it is written."""
    store = ground.store("disk")
    site = ground.home / "disk-limit"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(
        "import resource, sys\n"
        "if any('default_worker' in word for word in getattr(sys, 'orig_argv', ())):\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({FILE_LIMIT}, {FILE_LIMIT}))\n"
    )
    command = ground.start("shards", store, "cluster.address=local", env={"PYTHONPATH": python_path(site, ROOT)})
    code, said = command.wait(), last(command.text)
    when = time.time()
    expect(code == EXIT_FAILED, f"exit code {code} where files may not grow: {said}")
    expect("may not grow" in said and "continues" in said, f"no clear sentence: {said}")
    expect(not finished(store, "shards"), "a stage that could not write is called finished")
    ground.run("shards", store)
    expect_same(store, ground.reference, ["shards"])
    return [Hit("shards", f"files of at most {FILE_LIMIT} bytes; it said: {said[:160]}", back_after(store, when))]


def shards(ground: Ground, cluster: Cluster) -> list[Hit]:
    """One shard loses its second half, and in another one bit is turned."""
    store = ground.prepared("shards", before="publish")
    torn, flipped = ground.dice.sample(sorted(store.glob("shards/*/*/part-*.parquet")), 2)
    others = {path: path.stat().st_mtime_ns for path in store.glob("shards/*/*/part-*.parquet")}
    with torn.open("r+b") as file:
        file.truncate(torn.stat().st_size // 2)
    content = bytearray(flipped.read_bytes())
    place = ground.dice.randrange(len(content))
    content[place] ^= 1 << ground.dice.randrange(8)
    flipped.write_bytes(content)
    looked = ground.start("verify", store)
    expect(looked.wait() == EXIT_FAILED, "verify finds nothing wrong")
    names = [f"{path.parent.name}/{path.name}" for path in (torn, flipped)]
    expect(all(name in looked.text for name in names), f"verify does not name {', '.join(names)}")
    when = time.time()
    ground.run("shards", store)
    for path, written in others.items():
        made_again = path not in (torn, flipped) and path.stat().st_mtime_ns != written
        expect(not made_again, f"{path.name} was whole and was made again")
    expect_same(store, ground.reference, ["shards"])
    return [Hit("between two runs", f"{names[0]} torn, {names[1]} one bit", back_after(store, when))]


def together(ground: Ground, cluster: Cluster) -> list[Hit]:
    """A second run is started on the store of the first."""
    store = ground.prepared("together", before="student")
    first = ground.start("student", store)
    expect(ground.until(first, lambda: begun(store, "student")), f"it ended early: {last(first.text)}")
    second = ground.begin(
        [sys.executable, *[str(word) for word in first.process.args[1:]]],  # type: ignore[index]
        store.with_name("together.second.log"),
    )
    expect(second.wait() == EXIT_STORE_HELD, f"the second run's exit code is {second.wait()}: {last(second.text)}")
    said = last(second.text)
    first.sound()
    expect_same(store, ground.reference, ["student"])
    return [Hit("student", f"the second said: {said[:160]}", None)]


def mlflow(ground: Ground, cluster: Cluster) -> list[Hit]:
    """MLflow is dead, answers nothing, or its database is locked, while the last two stages run; then it is there."""
    hits = []
    for kind in ("dead", "silent", "locked"):
        store = ground.prepared(f"mlflow-{kind}", before="evaluate")
        with trouble(kind, store) as uri:
            words = (f"mlflow.uri={uri}",) if uri else ()
            command = ground.run("run", store, *words)
            took = time.time() - command.began
        expect_same(store, ground.reference, ["evaluate"])
        told = ground.run("sync", store)
        expect(SYNCED in told.text, f"{kind}: sync sent nothing: {last(told.text)}")
        again = ground.run("sync", store)
        expect("MLflow has all" in last(again.text), f"{kind}: a second sync still sent: {last(again.text)}")
        calm = ground.seconds["evaluate"] + ground.seconds["publish"]
        said = f"MLflow {kind}: {took:.0f} s, undisturbed {calm:.0f} s without its start"
        hits.append(Hit("evaluate and publish", said, None))
    return hits


@contextmanager
def trouble(kind: str, store: Path) -> Iterator[str]:
    """An address of MLflow that gives trouble for the time of the block; '' is the store's own database."""
    if kind == "dead":
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
            port = server.server_port
        yield f"http://127.0.0.1:{port}"  # nobody listens there any more
    elif kind == "silent":
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
    else:
        prepare()
        make_database(f"sqlite:///{store / 'mlflow.db'}")
        with closing(sqlite3.connect(store / "mlflow.db", isolation_level=None)) as database:
            database.execute("BEGIN EXCLUSIVE")
            yield ""


class Silent(http.server.BaseHTTPRequestHandler):
    """Takes a request and does not answer."""

    def do_GET(self) -> None:
        time.sleep(3600)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET
