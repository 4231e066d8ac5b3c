"""A cluster that is already running: joined by every command, given jobs, with tokens. For real, and left alone after.

The cluster is `ray start --head` on ports of its own, with its notes in a folder of its own ($RAY_TMPDIR), so that
neither another cluster on this machine nor the next user's home folder sees anything of it.
"""

import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpe_core.data.rows import ShardError, read_shard
from hpe_core.spec.cluster import ClusterSpec
from hpe_core.system.files import file_sha256, read_json, write_json
from hpe_core.system.remote import Remote
from tests import road
from tests.servers import answering, s3_variables
from tests.test_bucket import FEWER, finished_everywhere
from tests.traced import Seen, needs_strace, seen
from workflows.engine.cluster.connection import TRIES, capacity, machinery
from workflows.engine.config import REPO


def cluster_of(monkeypatch: pytest.MonkeyPatch, **resources: float) -> None:
    """What Ray says that the connected cluster has."""
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    nodes = [{"Alive": True, "Resources": resources}, {"Alive": False, "Resources": {"memory": 1e12}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)


def test_a_cluster_at_zero_is_planned_for_at_the_size_that_it_grows_to(monkeypatch):
    cluster_of(monkeypatch, memory=8e9)  # a head that has neither a CPU nor a GPU to give
    assert capacity(ClusterSpec()) == {"CPU": 0, "GPU": 0, "CPU 0": 0, "GPU 0": 0, "memory 0": 8e9}
    assert capacity(ClusterSpec(max_cpus=64, max_gpus=8)) == {"CPU": 64, "GPU": 8}


def test_what_a_cluster_has_counts_where_it_is_more(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    cluster_of(monkeypatch, CPU=16.0, GPU=2.0, memory=3e9)
    assert capacity(ClusterSpec(max_cpus=8, max_gpus=1)) == {"CPU": 16, "GPU": 2}, "nobody knows what will come"
    one = {"CPU 0": 16, "GPU 0": 2, "memory 0": 3e9}
    assert capacity(ClusterSpec()) == {"CPU": 16, "GPU": 2, **one}, "and what lies on which machine"
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert capacity(ClusterSpec())["cores"] == 6, "a local cluster claims more"


def test_a_thread_that_outlives_its_cluster_starts_no_other():
    """Ray's own calls would start one, with a dashboard for all to see, while the run that was stopped waits for it."""
    code = (
        "import os\nfrom workflows.engine.cluster.connection import QUIET\nos.environ.update(QUIET)\nimport ray\n"
        "try:\n    ray.put(1)\nexcept Exception as error:\n    print(error)\n"
        "raise SystemExit(ray.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, timeout=600)
    assert done.returncode == 0 and "ray.init" in done.stdout, done.stderr


@dataclass(frozen=True)
class Head:
    """A running head node: where it is, and the environment that lets a client in."""

    port: int
    dashboard: str
    env: dict[str, str]
    strangers: dict[str, str]  # the same without the token

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def joined(self) -> re.Pattern[str]:
        """What a command says that has joined this cluster: Ray may know the machine by another address."""
        return re.compile(rf"^Ray: joined \S+:{self.port}, 4 CPUs$", re.MULTILINE)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, outside 10002-19999, where Ray's workers live."""
    found: list[int] = []
    for port in random.sample(range(21000, 31000), 500):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def ray_head(s3_server: str) -> Iterator[Head]:
    # A socket's path has to stay below 108 letters, so pytest's own folder is too deep.
    home = Path(tempfile.mkdtemp(prefix="hpe", dir="/tmp"))
    token = home / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    gcs, dashboard, agent, agent_grpc, metrics, client = free_ports(6)
    strangers = road.environment(RAY_TMPDIR=str(home), HPE_CACHE=str(home / "cache"), **s3_variables(s3_server))
    env = {**strangers, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    log = home / "head.log"
    with open(log, "w") as stream, road.whole_tree() as start:
        command = f"start --head --block --num-cpus=4 --port={gcs} --dashboard-host=127.0.0.1"
        command += f" --dashboard-port={dashboard} --dashboard-agent-listen-port={agent} --disable-usage-stats"
        command += f" --dashboard-agent-grpc-port={agent_grpc} --metrics-export-port={metrics}"
        command += f" --ray-client-server-port={client} --min-worker-port=0 --max-worker-port=0"
        process = start([*ray, *command.split()], cwd=home, env=env, stdout=stream, stderr=stream)
        deadline = time.monotonic() + 180
        while not (listens(gcs) and listens(dashboard) and (home / "ray" / "ray_current_cluster").exists()):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        try:
            yield Head(gcs, f"http://127.0.0.1:{dashboard}", env, strangers)
        finally:
            # `ray start --block` takes half a minute over a SIGTERM; nothing here is worth the wait.
            road.wait_gone([*road.family(process.pid), *left_in(home)], 0)
            process.wait()
    shutil.rmtree(home, ignore_errors=True)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def left_in(home: Path) -> list[psutil.Process]:
    """Processes whose command line names this cluster's folder: nobody else's."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(home) in word for word in process.cmdline()):
                found.append(process)
    return found


def submit(ray_head: Head, store: str, *more: str) -> road.Done:
    """`ray job submit --working-dir . -- python workflows/full_pipeline.py ...`, and wait for the job's end."""
    entry = ["python", *road.words("run", store, *more)[1:]]
    options = ["--address", ray_head.dashboard, "--working-dir", ".", "--entrypoint-num-cpus", "0.1"]
    return road.call(
        [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", *options, "--", *entry], ray_head.env
    )


def joined(done: road.Done, ray_head: Head) -> None:
    assert ray_head.joined.search(road.sound(done).err), road.tail(done)


@pytest.mark.timeout(3600)
def test_a_cluster_with_tokens_refuses_a_client_without_one_in_a_sentence(ray_head, tmp_path):
    done = road.run("shards", tmp_path / "store", env=ray_head.strangers)
    last = done.err.splitlines()[-1]
    assert done.code == 2, road.tail(done)
    assert last.startswith("error: cluster.address") and "RAY_AUTH_MODE=token" in last, road.tail(done)
    assert "Traceback" not in done.err and len(last) < 500, road.tail(done)


def replace_files(ray_head: Head, there: Remote, contents: Mapping[Path, bytes]) -> None:
    """Other bytes for files of the shards in the bucket, and in the manifest their sizes and hashes.

    Nothing of it is left on the cluster's machine, which fetches what it will read.
    """
    folder = road.stage_folder(there.folder, "shards")
    manifest = read_json(folder / "manifest.json")
    for path, content in contents.items():
        path.write_bytes(content)
        listed = {"bytes": len(content), "sha256": file_sha256(path)}
        manifest["files"][str(path.relative_to(folder))] = listed
    write_json(folder / "manifest.json", manifest)
    there.send(str(path.relative_to(there.folder)) for path in (*contents, folder / "manifest.json"))
    shutil.rmtree(ray_head.env["HPE_CACHE"])


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_stages_are_verbs_and_the_rest_is_a_job(ray_head, bucket, tmp_path):
    """Two stages one by one on the running cluster, with test shards that cannot be read; then a job does what is left.

    All of it in a bucket, where another machine finds it finished. Nothing before "evaluate" stumbles over the
    unreadable test shards, so nothing before it has looked into them. The manifest lists them as they are: else the
    store would find them damaged and have them made again.
    """
    store, there = f"{bucket}/runs", Remote(f"{bucket}/runs")
    early = road.run("labels", store, *FEWER, env=ray_head.env)
    assert early.code == 2 and "stage labels needs shards, teachers, not finished" in early.err, road.tail(early)

    # Its address is `auto`: it is found by the note of `ray start`.
    joined(road.run("shards", store, *FEWER, env=ray_head.env), ray_head)
    there.fetch(there.index("shards"))
    tests = {path: path.read_bytes() for path in there.folder.glob("shards/*/heads.test/part-*.parquet")}
    assert tests
    replace_files(ray_head, there, dict.fromkeys(tests, b"nobody may read this"))
    for path in tests:
        with pytest.raises(ShardError):
            read_shard(path)
    by_address = {**ray_head.env, "RAY_ADDRESS": ray_head.address}
    joined(road.run("teachers", store, *FEWER, env=by_address), ray_head)
    again = road.run("teachers", store, *FEWER, env=ray_head.env)
    assert again.code == 0 and "teachers  skip" in again.err and "Ray" not in again.err, road.tail(again)

    broken = submit(ray_head, store, *FEWER)
    told = broken.out + broken.err
    assert broken.code != 0 and "student: done in" in told, road.tail(broken)
    assert re.search(r"^error: shard .*part-0000\d.parquet cannot be read", told, re.MULTILINE), road.tail(broken)
    assert "Traceback" not in told and "predict_all" not in told, "a damaged file is one sentence, also from a worker"
    replace_files(ray_head, there, tests)

    done = submit(ray_head, store, *FEWER)
    told = road.sound(done).out + done.err
    assert ray_head.joined.search(told) and "Job '" in told and "succeeded" in told, road.tail(done)
    assert "distilled" in told and "student   skip" in told, road.tail(done)
    there.fetch(there.index("evaluate"))
    rows = {row["name"]: row for row in road.result_of(there.folder, "evaluate")["rows"]}
    assert rows["distilled"]["scores"]["n"] == road.result_of(there.folder, "shards")["splits"]["heads.test"]["kept"]
    finished_everywhere(store, told, tmp_path / "other")
    assert listens(ray_head.port), "the cluster is left by all of them, and never stopped"


DOCTOR = """
import sys
from workflows import doctor
config, store, database, address, server = sys.argv[1:]
fixed = ["-c", config, f"store={store}", f"cluster.address={address}", "faces=6"]
assert doctor.main([*fixed, f"mlflow.uri={server}"]) == 0
assert doctor.main([*fixed, f"mlflow.uri=sqlite:///{database}"]) == 0
"""


@needs_strace
def test_the_doctor_asks_this_cluster_and_this_mlflow_and_nobody_else(ray_head, fresh_database, tmp_path):
    asked: list[str] = []
    variables = {name: value for name, value in ray_head.env.items() if name.startswith("RAY_")}
    with answering(lambda path: (asked.append(path) or 200, b"OK", 2)) as port:
        config = str(REPO / road.CONFIG)
        words = [config, str(tmp_path / "store"), str(fresh_database), ray_head.address, f"http://127.0.0.1:{port}"]
        assert seen(tmp_path / "traced", DOCTOR, *words, **variables) == Seen([], [])
    assert asked == ["/health"]


def test_nothing_of_ray_is_written_into_the_home_folder(ray_head):
    """A token there would switch on authentication for whoever starts Ray next (RAY_AUTH_TOKEN_PATH is enough)."""
    token = Path(ray_head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    there = Path.home() / ".ray" / "auth_token"
    assert not there.exists() or there.read_text().strip() != token
    assert ray_head.env["RAY_TMPDIR"] != os.environ.get("RAY_TMPDIR")


@pytest.mark.parametrize(
    ("alive", "cpus", "expected"),
    [([True], 64.0, 3.0), ([True], 2.0, 2.0), ([True, False], 64.0, 3.0), ([True, True], 64.0, 64.0)],
)
def test_a_machine_counts_by_its_cores_and_a_cluster_by_its_cpus(monkeypatch, alive, cpus, expected):
    """What a stage cost must not depend on how many logical CPUs a local cluster was given."""
    import ray

    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": yes} for yes in alive])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cpus, "GPU": 1.0})
    assert machinery() == {"cpus": expected, "gpus": 1.0}


@pytest.mark.parametrize(
    ("failures", "error", "said"),
    [(TRIES - 1, "", None), (TRIES, "", f"did not start, {TRIES} times"), (1, "no", "no")],
)
def test_a_machine_that_is_too_busy_for_ray_gets_more_time(monkeypatch, failures, error, said):
    """Ray's own 30 seconds cannot be changed; another fault is no reason to try again."""
    import ray

    from workflows.engine.cluster.connection import start_local
    from workflows.engine.stage import StageFailed

    tried: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        tried.append(options)
        if len(tried) <= failures:
            raise Exception(error or "The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    if said is None:
        start_local(num_cpus=4)
    else:
        with pytest.raises(Exception, match=said) as caught:
            start_local(num_cpus=4)
        assert isinstance(caught.value, StageFailed) == (not error)
    assert len(tried) == (1 if error else TRIES) and all(options["num_cpus"] == 4 for options in tried)
