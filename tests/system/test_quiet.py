"""No byte leaves unasked: the system calls of processes that use each library, in a fresh home, seen by strace.

Every process runs twice: as users run it, and with the switches off. The second must be seen to look up a name, to
connect or to write below HOME, else the first shows nothing. Variables by which libraries recognise a CI or a test run
are not set. Allowed are this machine's own addresses, and the way in which Ray finds its own: a UDP socket that is
connected to 8.8.8.8 and sends nothing.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from hpe_core.system.quiet import SWITCHES, be_quiet
from tests.faces import write_onnx
from workflows.engine.config import REPO

STRACE = shutil.which("strace")
LOUD = {name: {"0": "1", "1": "0", "true": "false"}[value] for name, value in SWITCHES.items()}
PROBE = "8.8.8.8"
ADDRESS = re.compile(r'(?:inet_addr\(|AF_INET6, )"(?:::ffff:)?([^"]+)"|->\[?(?:::ffff:)?([0-9a-f.:]+?)\]?:\d+\]?>')
needs_strace = pytest.mark.skipif(STRACE is None, reason="strace is not installed (apt-get install strace)")

POSES = """
import sys, time, numpy
from hpe_core.predictor import HeadPosePredictor
predictor = HeadPosePredictor.load(sys.argv[1])
poses = predictor.predict(numpy.full((40, 40, 3), 9, numpy.uint8), [(0, 0, 40, 40)])
assert poses.angles.round().tolist() == [[9, 9, 9]]
time.sleep(float(sys.argv[2]))
"""
PUBLISHED = """
import sys
from pathlib import Path
import numpy
from hpe_core.augment.reference import photometric_chain
from hpe_core.learning.checkpoint import save_net
from hpe_core.learning.models import PoseNet
from hpe_core.spec.data import CropSpec
from hpe_core.spec.network import NetSpec
from workflows.export.int8 import quantize_onnx
from workflows.export.mlmodel import begin_folder
from workflows.export.onnx_file import export_network
folder, crop = Path(sys.argv[1]), CropSpec(size=32, margin_px=4)
begin_folder(folder / "model")
save_net(folder, PoseNet(NetSpec("test_resnet"), crop.size).eval(), crop, {})
faces = numpy.random.default_rng(0).integers(0, 255, (8, crop.size, crop.size, 3), numpy.uint8)
export_network(folder, folder / "student.onnx", folder / "student.pt2", faces)
quantize_onnx(folder / "student.onnx", folder / "int8.onnx", faces)
photometric_chain("light", 1.0)
"""
LOUDEST = """
import mlflow
import onnxruntime
from hpe_core.augment.reference import photometric_chain
photometric_chain("light", 1.0)
"""
ON_RAY = """
import os
import ray
from hpe_core.spec.cluster import ClusterSpec
from hpe_core.system.quiet import SWITCHES
from workflows.engine.cluster import connected

def augmented(row):
    from hpe_core.augment.reference import photometric_chain
    photometric_chain("light", 1.0)
    return {"quiet": all(os.environ.get(name) == value for name, value in SWITCHES.items())}

if __name__ == "__main__":
    with connected(ClusterSpec(address="local", local_cpus=4)):
        assert all(row["quiet"] for row in ray.data.range(4).map(augmented).take_all())
"""
ASKING = """
import contextlib
import time
from hpe_core.spec.cluster import ClusterSpec
from workflows.engine import cluster

if __name__ == "__main__":
    cluster.no_dashboard_process = contextlib.nullcontext
    with cluster.connected(ClusterSpec(address="local", local_cpus=4)):
        time.sleep(5)
"""


@dataclass(frozen=True)
class Seen:
    """What a process did: system calls that leave the machine, and paths that it left below its home."""

    calls: list[str]
    written: list[str]


def seen(folder: Path, code: str, *words: str, **variables: str) -> Seen:
    """Run Python code as a user would, in an environment of nothing but PATH, HOME and `variables`."""
    home, trace = folder / "home", folder / "trace.txt"
    home.mkdir(parents=True)
    script = folder / "script.py"
    script.write_text(code)
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(REPO), **variables}
    watch = [str(STRACE), "-f", "--seccomp-bpf", "-yy", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    command = [*watch, sys.executable, str(script), *words]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    below = sorted(str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir())
    return Seen(leaving(trace.read_text(errors="replace")), below)


def leaving(trace: str) -> list[str]:
    """Lines of strace's that name a stranger's address or a resolver."""
    own = {one.address.partition("%")[0] for cards in psutil.net_if_addrs().values() for one in cards}
    found = []
    for line in trace.splitlines():
        connects = " connect(" in line
        named = ADDRESS.findall(line.partition(", ")[2] if connects else line)  # before it is what the socket was
        strangers = {one for pair in named for one in pair if one} - own
        strangers = {one for one in strangers if not (ip_address(one).is_loopback or ip_address(one).is_unspecified)}
        probes = strangers == {PROBE} and connects and "<TCP" not in line
        if not probes and (strangers or "htons(53)" in line or "/resolve/" in line):
            found.append(line)
    return found


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
def test_training_and_publishing_are_as_quiet(tmp_path):
    assert seen(tmp_path / "quiet", PUBLISHED, str(tmp_path / "quiet")) == Seen([], [])
    loud = seen(tmp_path / "loud", LOUDEST, **LOUD)
    assert any("deviceid" in path for path in loud.written) and any("mlflow" in path for path in loud.written)
    assert loud.calls, "albumentations looks for a newer release"


@needs_strace
@pytest.mark.longer
def test_a_cluster_asks_nobody_where_it_is(tmp_path):
    """Ray's own processes and its workers. The process of its dashboard would ask for the cloud, switches or not."""
    assert seen(tmp_path / "quiet", ON_RAY) == Seen([], [])
    assert any("169.254.169.254" in line for line in seen(tmp_path / "loud", ASKING).calls)
