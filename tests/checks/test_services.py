"""What the doctor says of services: a cluster and its dashboard, and MLflow."""

import json
import platform
import socket
import sqlite3
import threading
from contextlib import closing

import pytest
import ray
from ray.exceptions import RpcError

from hpe_core.spec.cluster import ClusterSpec
from tests.servers import answering
from workflows.checks import services
from workflows.checks.services import dashboard_port, dashboard_state, look_at_mlflow, look_at_ray, mlflow_revisions


@pytest.fixture
def dashboard():
    """A server on all addresses that answers with the first of the codes it is given."""
    codes: list[int] = []
    with answering(lambda path: (codes[0], b"", 0), host="") as port:
        yield port, codes


@pytest.mark.parametrize(
    ("hosts", "code", "state"),
    # 0.0.0.0 stands for an address that others reach
    [("127.0.0.1", 200, "local"), ("127.0.0.1", 401, "token"), ("127.0.0.1 0.0.0.0", 200, "open"), ("", 200, "none")],
)
def test_a_dashboard_is_open_where_others_get_an_answer_without_a_token(dashboard, hosts, code, state):
    port, codes = dashboard
    codes.append(code)
    assert dashboard_state(hosts.split(), port) == state
    assert dashboard_state(["127.0.0.1"], 1) == "none"


@pytest.mark.parametrize(
    ("answer", "port"), [(b"10.0.0.1:8299", 8299), (None, 8265), (RpcError("no such cluster"), 8265)]
)
def test_a_cluster_says_itself_where_its_dashboard_is(dashboard, monkeypatch, answer, port):
    class Client:
        def __init__(self, address: str) -> None:
            assert address == listening

        def internal_kv_get(self, key: bytes, namespace: bytes, timeout: float) -> bytes | None:
            assert (key, namespace) == (b"dashboard", b"dashboard") and timeout <= 5
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr("ray._raylet.GcsClient", Client)
    listening = f"127.0.0.1:{dashboard[0]}"
    assert dashboard_port(listening) == port
    assert dashboard_port("127.0.0.1:1") == dashboard_port("ray://127.0.0.1:1") == 8265, "nobody is asked"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379"])
def test_a_cluster_that_is_not_there_is_an_error(address):
    (finding,) = look_at_ray(ClusterSpec(), address).findings
    assert finding.level == "error" and address in finding.text and "RAY_ADDRESS" in finding.text
    assert look_at_ray(ClusterSpec(), "").findings == ()


@pytest.mark.parametrize(
    ("ray_there", "python_there", "said"),
    [("here", "here", ""), ("2.55.0", "here", "Ray 2.55.0"), ("here", "3.10.2", "Python 3.10.2"), (None, "here", "")],
)
def test_a_cluster_of_other_versions_is_an_error(monkeypatch, dashboard, ray_there, python_there, said):
    """It is asked, not joined: whoever joins it gets Ray's traceback."""
    here = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    there = {"ray_version": ray_there, "python_version": python_there}
    noted = json.dumps({key: here[key] if value == "here" else value for key, value in there.items()})

    class Client:
        def __init__(self, address: str) -> None:
            assert address.startswith("127.0.0.1")

        def internal_kv_get(self, key: bytes, namespace: bytes, timeout: float) -> bytes | None:
            return noted.encode() if (key, namespace) == (b"CLUSTER_METADATA", b"cluster") else None

    monkeypatch.setattr("ray._raylet.GcsClient", Client)
    monkeypatch.setattr(services, "dashboard_state", lambda hosts, port: "none")
    findings = look_at_ray(ClusterSpec(), f"127.0.0.1:{dashboard[0]}").findings
    assert [(one.level, said in one.text) for one in findings] == ([("error", True)] if said else [])


def test_mlflow_stores(tmp_path, monkeypatch, dashboard):
    monkeypatch.setattr(services, "TIMEOUT_S", 0.2)
    file = tmp_path / "mlflow.db"
    uri, known = f"sqlite:///{file}", mlflow_revisions()
    assert look_at_mlflow(uri).said.endswith("made by the first run") and not file.exists()
    for revision, said, level in ((known[0], "up to date", ""), (known[1], "older", ""), ("ffff", "ffff", "error")):
        file.unlink(missing_ok=True)
        with closing(sqlite3.connect(file)) as database:
            database.execute("CREATE TABLE alembic_version (version_num TEXT)")
            database.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
            database.commit()
        look = look_at_mlflow(uri)
        assert said in f"{look.said} {look.findings}" and "".join(one.level for one in look.findings) == level
    file.write_bytes(b"this is no database at all")
    assert look_at_mlflow(uri).findings[0].level == "error"
    port, codes = dashboard
    codes.append(200)
    assert look_at_mlflow(f"http://127.0.0.1:{port}").findings == ()
    assert look_at_mlflow(f"http://user:secret@127.0.0.1:{port}/").findings == ()
    silent = look_at_mlflow("http://user:secret@127.0.0.1:1")
    assert silent.findings[0].level == "warning" and "secret" not in f"{silent}"
    assert look_at_mlflow("none").findings == ()


def test_a_port_of_another_service_is_no_dashboard_and_no_mlflow():
    """One that greets whoever calls, as SSH does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            for _ in range(2):
                caller, _ = listening.accept()
                with caller:
                    caller.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                    caller.recv(1 << 16)

        greeter = threading.Thread(target=greet, daemon=True)
        greeter.start()
        port = listening.getsockname()[1]
        assert dashboard_state(["127.0.0.1"], port) == "none"
        (finding,) = look_at_mlflow(f"http://127.0.0.1:{port}").findings
        assert finding.level == "warning" and "speaks no HTTP" in finding.text
        greeter.join(5)
