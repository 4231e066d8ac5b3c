"""One Ray cluster and a server for each object store for the whole session, and real archives where there are any."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from workflows.engine.exported import TracedNetwork

import hpe_core  # noqa: F401  # the switches of hpe_core/system/quiet.py, before Ray is imported

settings.register_profile("laws", deadline=None)  # a law holds or not; how long an example took says nothing
settings.load_profile("laws")

# No token file in the home folder that would switch on authentication for whoever runs `ray start` there next.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
# Ray makes its workers nice, so the tests beside them would take all there is of the machine.
os.environ.setdefault("RAY_worker_niceness", "0")
# On a busy machine the threads of one sum wait for each other, a hundred times longer than the sum takes.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Who asks for these fixtures starts Ray, and runs in which tier.
STARTS_RAY = {"ray_cluster": "ray", "ray_head": "longer", "calm": "longer", "killed": "longer", "nodes": "slow"}


# Files whose tests start Ray: `make test` runs them one after the other, beside all others.
RAY_FILES = ("tests/test_pipeline.py", "tests/stages/test_shards.py", "tests/training/test_stream.py")


# A file that has such a test says one of these; the others need not be imported to find them.
LONGER = re.compile(rf"mark\.longer|\b({'|'.join(name for name, tier in STARTS_RAY.items() if tier == 'longer')})\b")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The longer tier has few tests; what a file imports takes long."""
    if not config.option.markexpr.startswith("longer") or collection_path.suffix != ".py":
        return None
    return None if LONGER.search(collection_path.read_text("utf-8")) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start Ray are marked so and begin first; those that share a cluster come last of them."""
    turns = {}
    for item in items:
        asked = STARTS_RAY.keys() & set(getattr(item, "fixturenames", ()))
        for mark in {"ray", *(STARTS_RAY[name] for name in asked)} if asked else ():
            item.add_marker(mark)
        if item.get_closest_marker("longer") and not LONGER.search(item.path.read_text("utf-8")):
            raise pytest.UsageError(f"{item.nodeid}: the longer tier would not find it (LONGER in tests/conftest.py)")
        ray = item.get_closest_marker("ray") is not None
        turns[item] = int("ray_cluster" in asked) if ray else 2
    items.sort(key=turns.__getitem__)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay in one process, and in the first tier all files that start Ray in the same one.

    The longer tier is made of runs that mostly wait: two at once end sooner.
    (`--dist loadgroup` does not work with pytest 9.2: it renames tests by an attribute that is gone.)
    """
    from xdist.scheduler import LoadScopeScheduling

    longer = config.option.markexpr.startswith("longer")

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "ray" if file in RAY_FILES and not longer else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of 4 logical CPUs (fewer can deadlock Ray Data), stopped at the end of the session."""
    from workflows.engine.cluster.connection import leave, start_local

    started = start_local(num_cpus=4, log_to_driver=False)
    yield
    leave(started)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server on loopback that speaks S3."""
    import logging

    server = pytest.importorskip("moto.server", reason="no S3 server here (pip install 'moto[s3]')")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(scope="session")
def google_server() -> Iterator[str]:
    """The address of a server on loopback that speaks as Google's storage does."""
    import logging
    import socket

    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="no such server (pip install '.[dev]')")
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = emulator.create_server("127.0.0.1", port, in_memory=True)
    running.start()
    yield f"http://127.0.0.1:{port}"
    running.stop()


@pytest.fixture
def bucket(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a fresh, empty bucket, gs:// unless a test asks for "s3", and a cache folder of its own.

    What is the same for both takes Google's: its server takes half the time, and its clock knows more than seconds.
    """
    from pyarrow.fs import GcsFileSystem, S3FileSystem

    from hpe_core.datasets.files import _index
    from hpe_core.system.filesystems import open_filesystem
    from tests.servers import s3_variables

    scheme, name = getattr(request, "param", "gs"), f"b{abs(hash(str(tmp_path))):x}"
    server = request.getfixturevalue("google_server" if scheme == "gs" else "s3_server")
    if scheme == "gs":
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
        made = GcsFileSystem(anonymous=True, scheme="http", endpoint_override=server.split("//")[1], project_id="tests")
    else:
        for key, value in s3_variables(server).items():
            monkeypatch.setenv(key, value)
        made = S3FileSystem(endpoint_override=server, allow_bucket_creation=True)
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))
    for cached in (open_filesystem, _index):
        cached.cache_clear()
    made.create_dir(name)
    yield f"{scheme}://{name}"
    for cached in (open_filesystem, _index):
        cached.cache_clear()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> "tuple[Path, TracedNetwork]":
    """Folder of an untrained network with its ONNX and .pt2 file, and what the export said: tracing takes seconds."""
    from tests.faces import NET_CROP, noise, save_untrained
    from workflows.export.onnx_file import export_network

    folder = save_untrained(tmp_path_factory.mktemp("exported"))
    found = export_network(folder, folder / "student.onnx", folder / "student.pt2", noise(35, NET_CROP.size))
    return folder, found


@pytest.fixture(scope="session")
def exported_net(exported: "tuple[Path, TracedNetwork]") -> Path:
    return exported[0]


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, to be copied: its schema takes seconds."""
    from tests.tracking.places import uri_of
    from workflows.tracking.server import make_database, prepare

    folder = tmp_path_factory.mktemp("schema")
    prepare()
    make_database(uri_of(folder))
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def yunet(real_data: Path) -> Path:
    """The face detector's file."""
    file = real_data / "yunet" / "yunet_n_dynamic.onnx"
    if not file.is_file():
        pytest.skip(f"the face detector is not here: {file}")
    return file


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the sample archives: $HPE_REAL_DATA, or shared/data beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("HPE_REAL_DATA", default))
    if not path.is_dir():
        pytest.skip(f"the sample archives are not here: {path} (set HPE_REAL_DATA)")
    return path
