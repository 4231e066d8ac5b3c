"""No byte leaves unasked: the system calls of processes that use each library, in a fresh home, seen by strace.

Every process runs twice: as users run it, and with the switches off. The second must be seen to look up a name, to
connect or to write below HOME, else the first shows nothing. Variables by which libraries recognise a CI or a test run
are not set. Allowed are this machine's own addresses, and the way in which Ray finds its own: a UDP socket that is
connected to 8.8.8.8 and sends nothing. A whole run is watched in tests/test_killed.py, and the doctor, which asks a
cluster and MLflow, in tests/test_cluster.py.
"""

import os
import socket

import cv2
import psutil
import pytest

from hpe_core.system.quiet import SWITCHES, be_quiet
from tests.faces import write_onnx
from tests.traced import DOCUMENTED, Seen, leaving, needs_strace, seen
from workflows.engine.config import REPO

LOUD = {name: {"0": "1", "1": "0", "true": "false"}[value] for name, value in SWITCHES.items()}

POSES = """
import sys, time, numpy
from hpe_core.predictor import HeadPosePredictor
predictor = HeadPosePredictor.load(sys.argv[1])
poses = predictor.predict(numpy.full((40, 40, 3), 9, numpy.uint8), [(0, 0, 40, 40)])
assert poses.angles.round().tolist() == [[9, 9, 9]]
time.sleep(float(sys.argv[2]))
"""
VIDEO = """
import sys
from workflows import predict
video, model, *detector = sys.argv[1:]
assert predict.main([video, f"model={model}", "boxes=whole", "frames=3"]) == 0
if detector:
    assert predict.main([video, f"detector={detector[0]}", "smooth=0.2", "frames=3", "out=found"]) == 0
    assert len(open("found/poses.csv").readlines()) == 4, "a face in each frame"
"""
LOUDEST = """
import mlflow
import onnxruntime
from hpe_core.augment.reference import photometric_chain
photometric_chain("light", 1.0)
"""
ON_RAY = """
import os
import psutil
import ray
from hpe_core.spec.cluster import ClusterSpec
from hpe_core.system.quiet import SWITCHES
from workflows.engine.cluster.connection import connected

def augmented(row):
    from hpe_core.augment.reference import photometric_chain
    photometric_chain("light", 1.0)
    return {"quiet": all(os.environ.get(name) == value for name, value in SWITCHES.items())}

if __name__ == "__main__":
    with connected(ClusterSpec(address="local", local_cpus=4)):
        assert all(row["quiet"] for row in ray.data.range(4).map(augmented).take_all())
        us = psutil.Process()
        open_ports = [port for one in (us, *us.children(recursive=True)) for port in one.net_connections("tcp")]
        listening = {port.laddr.ip.removeprefix("::ffff:") for port in open_ports if port.status == "LISTEN"}
        assert listening == {"127.0.0.1"}, listening
"""
ASKING = """
import contextlib
import time
from hpe_core.spec.cluster import ClusterSpec
from workflows.engine.cluster import connection

if __name__ == "__main__":
    connection.no_dashboard_process = contextlib.nullcontext
    with connection.connected(ClusterSpec(address="local", local_cpus=4)):
        time.sleep(5)
"""


def test_the_reading_of_a_trace_tells_strangers_from_this_machine():
    own = next(one.address for one in psutil.net_if_addrs()["lo"] if one.family == socket.AF_INET)
    quiet = f"""
1 connect(3<UDP:[1]>, {{sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("8.8.8.8")}}, 16) = 0
1 connect(3<TCP:[1]>, {{sa_family=AF_INET, sin_port=htons(99), sin_addr=inet_addr("{own}")}}, 16) = 0
1 sendto(3<TCP:[{own}:60547->{own}:53]>, "x", 1, 0, NULL, 0) = 1
1 connect(3<TCPv6:[1]>, {{sa_family=AF_INET6, sin6_port=htons(99), inet_pton(AF_INET6, "::ffff:{own}", &a)}}, 28) = 0
1 connect(3<UNIX-STREAM:[1]>, {{sa_family=AF_UNIX, sun_path="/tmp/ray/socket"}}, 110) = 0
""".strip()
    assert leaving(quiet) == []
    loud = f"""
1 sendto(3<UDP:[192.0.2.2:60547->8.8.8.8:53]>, "x", 1, 0, NULL, 0) = 1
1 connect(3<TCP:[1]>, {{sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("8.8.8.8")}}, 16) = 0
1 connect(3<UDP:[1]>, {{sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("{own}")}}, 16) = 0
1 connect(3<TCP:[1]>, {{sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("169.254.169.254")}}, 16) = -1
1 sendto(4<UDP:[1]>, "x", 1, 0, {{sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("203.0.113.9")}}, 16) = 1
1 connect(3<TCPv6:[1]>, {{sa_family=AF_INET6, sin6_port=htons(99), inet_pton(AF_INET6, "2001:db8::1", &a)}}, 28) = 0
1 sendto(5<UDPv6:[[fd00::2]:33689->[2001:db8::1]:53]>, "x", 1, 0, NULL, 0) = 1
1 connect(3<UNIX-STREAM:[1]>, {{sa_family=AF_UNIX, sun_path="/run/systemd/resolve/io.systemd.Resolve"}}, 42) = 0
""".strip().splitlines()
    assert leaving("\n".join(loud)) == loud


def test_what_a_user_has_chosen_stays(monkeypatch):
    name = next(iter(SWITCHES))
    monkeypatch.setenv(name, "mine")
    be_quiet()
    assert os.environ[name] == "mine" and all(name in os.environ for name in SWITCHES)


@needs_strace
def test_poses_from_an_onnx_file_are_nobodys_business(tmp_path):
    model = str(write_onnx(tmp_path / "small.onnx"))
    assert seen(tmp_path / "quiet", POSES, model, "0") == Seen([], [])
    assert any("deviceid" in path for path in seen(tmp_path / "loud", POSES, model, "0", **LOUD).written)


@needs_strace
@pytest.mark.longer
def test_poses_are_sent_nowhere_after_a_while_either(tmp_path):
    """ONNX Runtime looks its server up ten seconds after the first session."""
    model = str(write_onnx(tmp_path / "small.onnx"))
    assert seen(tmp_path / "quiet", POSES, model, "15") == Seen([], [])
    assert seen(tmp_path / "loud", POSES, model, "15", **LOUD).calls


@needs_strace
@pytest.mark.longer
def test_a_video_that_is_looked_at_is_nobodys_business(tmp_path, request):
    """Without a detector, and with one; drawn copies and the network of the package included."""
    detector = [str(request.getfixturevalue("yunet"))]
    face = cv2.imread(str(request.getfixturevalue("real_data") / "aflw2000" / "image00008.jpg"))
    video = tmp_path / "a.mp4"
    written = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), 25, face.shape[1::-1])
    for _ in range(3):
        written.write(face)
    written.release()
    words = [str(video), str(write_onnx(tmp_path / "small.onnx"))]
    assert seen(tmp_path / "quiet", VIDEO, *words, *detector) == Seen([], [])
    assert any("deviceid" in path for path in seen(tmp_path / "loud", VIDEO, *words, **LOUD).written)


def test_what_is_written_below_home_stands_in_a_page():
    page = (REPO / "docs" / "configuration.md").read_text()
    assert all(f"~/{pattern.removesuffix('/*')}" in page for pattern in DOCUMENTED)


@needs_strace
@pytest.mark.longer
def test_the_libraries_of_a_run_are_loud_where_nobody_silences_them(tmp_path):
    loud = seen(tmp_path / "loud", LOUDEST, **LOUD)
    assert any("deviceid" in path for path in loud.written) and any("mlflow" in path for path in loud.written)
    assert loud.calls, "albumentations looks for a newer release"


@needs_strace
@pytest.mark.longer
def test_a_cluster_asks_nobody_where_it_is(tmp_path):
    """Ray's own processes and its workers; and nobody else can reach these.

    The process of its dashboard would ask for the cloud, switches or not.
    """
    assert seen(tmp_path / "quiet", ON_RAY) == Seen([], [])
    assert any("169.254.169.254" in line for line in seen(tmp_path / "loud", ASKING).calls)
