"""The doctor: it finds what is wrong with datasets and machine, and is silent where nothing is."""

import json
import os
import platform
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import ray
from ray.exceptions import RpcError

from hpe_core.datasets.readers.aflw import AMONG_68
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import BOX_RULE
from hpe_core.geometry.rotation import euler_to_matrix
from hpe_core.render.anatomy import landmark_targets
from hpe_core.spec.cluster import ClusterSpec
from hpe_core.spec.data import ConventionSpec, DatasetSpec, DataSpec
from tests.archives import as_stored, picture, write_aflw, write_aflw2000, write_average_heads
from tests.faces import write_onnx
from tests.servers import answering
from workflows import doctor
from workflows.checks import machine, models, services
from workflows.checks.data import Examined, examine, histogram, in_lines, sample
from workflows.checks.machine import (
    bytes_needed,
    compare_packages,
    look_at_gpu,
    look_at_memory,
    look_at_networks,
    look_at_store,
)
from workflows.checks.models import published_in
from workflows.checks.services import dashboard_port, dashboard_state, look_at_mlflow, look_at_ray, mlflow_revisions
from workflows.engine.config import REPO, load
from workflows.export import runtimes
from workflows.training import jobs

HEAD = landmark_targets()
POSES = np.clip(np.random.default_rng(5).normal(0, 1, (12, 3)) * [15, 35, 12], -80, 80)


def write_faces(root: Path, convention: ConventionSpec) -> None:
    """An AFLW2000 of average heads whose labels are in another convention."""
    write_average_heads(root, POSES, as_stored(POSES, convention))


def looked_at(root: Path, capsys: pytest.CaptureFixture[str], *words: str, reader: str = "aflw2000") -> dict[str, Any]:
    """What `--json` prints about one dataset alone, with the exit code."""
    code = doctor.main([f"reader={reader}", f"root={root}", "--json", *words])
    return {**json.loads(capsys.readouterr().out), "code": code}


def errors(tree: dict[str, Any]) -> list[str]:
    return [finding["text"] for finding in tree["findings"] if finding["level"] == "error"]


@pytest.mark.parametrize(
    ("convention", "words", "keys"),
    [
        (ConventionSpec(yaw_sign=-1), "yaw is negated", "convention.yaw_sign=-1"),
        (ConventionSpec(transposed=True), "the rotation is transposed", "convention.transposed=true"),
        (
            ConventionSpec(order="yaw_pitch_roll"),
            "yaw stands for pitch and pitch stands for yaw",
            "convention.order=yaw_pitch_roll",
        ),
    ],
)
def test_a_wrong_archive_is_found_and_the_advice_mends_it(tmp_path, capsys, convention, words, keys):
    write_faces(tmp_path, convention)
    tree = looked_at(tmp_path, capsys)
    (said,) = errors(tree)
    assert said.startswith(f"{words}: set {keys} (labels lie ") and tree["code"] == 2 and not tree["ok"]
    mended = looked_at(tmp_path, capsys, keys)
    assert mended["ok"] and mended["code"] == 0 and mended["datasets"]["aflw2000"]["convention"]["kind"] == "agrees"


def test_a_right_archive_is_no_error_and_its_counts_add_up(tmp_path, capsys):
    write_faces(tmp_path, ConventionSpec())
    (tmp_path / "image00003.jpg").write_bytes(b"no picture")
    write_aflw2000(tmp_path, "image90000", (0.0, 351.0, 0.0))
    tree = looked_at(tmp_path, capsys)
    seen = tree["datasets"]["aflw2000"]
    assert tree["code"] == 0 and seen["found"] == 13 and seen["whole"] == 2000
    assert seen["rejected"] == {"not_a_picture": 1} and seen["filtered"] == 1
    assert seen["kept"] + sum(seen["rejected"].values()) == seen["looked_at"] == 13
    assert "image00003.jpg" in seen["examples"]["not_a_picture"]
    said = [finding["text"] for finding in tree["findings"]]
    assert any("1 of 13 faces are rejected (1 not_a_picture)" in text for text in said)
    assert any("this is a part" in text for text in said)


@pytest.mark.parametrize(("sign", "right"), [(-1, True), (1, False)])
def test_aflw_is_checked_by_its_own_landmarks(tmp_path, capsys, sign, right):
    """FacePose's roll has the other sign than ours; an AFLW in which it has ours is not one."""
    faces = []
    for i, pose in enumerate(POSES):
        points = 0.3 * (HEAD @ euler_to_matrix(pose).T)[:, :2] + [65, 40]
        marks = {feature: points[index].tolist() for feature, index in AMONG_68.items()}
        radians = np.radians(pose * [1, 1, sign]).tolist()
        face = {"face": i + 1, "file": f"image{i:05d}.jpg", "rect": (40, 15, 50, 60)}
        faces.append(face | {"pose": radians, "marks": marks})
    write_aflw(tmp_path, faces)
    tree = looked_at(tmp_path, capsys, reader="aflw")
    assert tree["ok"] == right
    assert right or "roll is negated: set convention.roll_sign=-1" in errors(tree)[0]


def test_a_manifest_in_radians_without_landmarks_is_suspected(tmp_path, capsys):
    rows = ["path,pitch,yaw,roll,x1,y1,x2,y2"]
    for i, (pitch, yaw, roll) in enumerate(np.radians(np.tile(POSES, (2, 1)))):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture(i, 60, 60))
        rows.append(f"{i}.png,{pitch},{yaw},{roll},10,10,50,50")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    tree = looked_at(tmp_path, capsys, reader="manifest")
    assert tree["ok"] and "convention.unit=radians_as_degrees" in tree["findings"][0]["text"]
    assert looked_at(tmp_path, capsys, "convention.unit=radians_as_degrees", reader="manifest")["findings"] == []


def test_an_aflw_in_degrees_without_landmarks_is_suspected(tmp_path, capsys):
    poses = (np.tile(POSES, (2, 1)) * [1, 1, -1]).tolist()
    faces = [{"face": i + 1, "file": f"a{i}.jpg", "rect": (40, 15, 50, 60), "pose": p} for i, p in enumerate(poses)]
    write_aflw(tmp_path, faces)
    said = [one["text"] for one in looked_at(tmp_path, capsys, reader="aflw")["findings"]]
    assert "convention.unit=degrees_as_radians" in said[0]
    mended = looked_at(tmp_path, capsys, "convention.unit=degrees_as_radians", reader="aflw")
    assert mended["datasets"]["aflw"]["filtered"] == 0 and len(mended["findings"]) == 1, "it is a part of AFLW"


def test_a_missing_archive_is_a_finding_and_the_others_are_looked_at(tmp_path):
    write_faces(tmp_path / "here", ConventionSpec())
    specs = {name: DatasetSpec("aflw2000", root=str(tmp_path / name)) for name in ("here", "gone")}
    data = DataSpec(specs, train=("here",), test=("gone",))
    gone, here = (examine(name, specs[name], data, 4, "", planned=True) for name in ("gone", "here"))
    assert [finding.level for finding in gone.findings] == ["error"] and "is not a folder" in gone.findings[0].text
    assert here.looked_at == 4 and here.found == 12 and set(here.splits) == {"train", "val"}
    assert len(in_lines(gone)) == 1 and gone.report["found"] == 0


@pytest.mark.parametrize(("every", "said"), [(3, "more than data.max_bad_share 0.2 allows"), (1, "24 of 24 faces are")])
def test_too_many_rejected_faces_are_an_error(tmp_path, capsys, every, said):
    for i in range(24):
        write_aflw2000(tmp_path, f"image{i:05d}", seed=i)
        if i % every == 0:
            (tmp_path / f"image{i:05d}.jpg").write_bytes(b"")
    assert said in errors(looked_at(tmp_path, capsys, f"out={tmp_path / 'look'}"))[0]


def test_pictures_are_written_where_they_are_asked_for(tmp_path, capsys):
    write_faces(tmp_path / "archive", ConventionSpec())
    looked_at(tmp_path / "archive", capsys, f"out={tmp_path / 'a' / 'look'}")
    for name in ("faces", "angles"):
        shown = cv2.imread(str(tmp_path / "a" / "look" / f"aflw2000.{name}.png"))
        assert shown is not None and min(shown.shape[:2]) > 200 and shown.std() > 5


def test_a_sample_is_drawn_from_everywhere_and_always_the_same():
    from hpe_core.datasets.base import FaceRef

    refs = [FaceRef(f"face{i:04d}", "", "") for i in range(1000)]
    some = sample(refs, 100)
    assert some == sample(refs, 100) == sorted(some) and len(set(some)) == 100
    assert max(int(ref.sample_id[4:]) for ref in some) > 900 and sample(refs, 0) == refs
    assert set(sample(refs, 50)) < set(some)


def test_a_histogram_shows_every_face():
    assert histogram(np.array([0.0] * 1000 + [95.0])).count(" ") == 18
    assert histogram(np.array([])) == " " * 20


def test_packages_are_compared_with_what_is_asked_for():
    wanted = ["ray[data]>=2.55,<3", "albumentations==2.0.8", "timm>=1", "mlflow>=3.5"]
    good = {"ray": "2.60.0", "albumentations": "2.0.8", "timm": "1.0.31+cpu", "mlflow": "3.17.2"}
    assert compare_packages("3.11.7", ">=3.11", wanted, good).findings == ()
    bad = compare_packages("3.10.2", ">=3.11", wanted, {"ray": "2.56.0", "albumentations": "2.0.9"})
    assert [finding.level for finding in bad.findings] == ["error"] * 3
    said = " ".join(finding.text for finding in bad.findings)
    assert "3.10.2 is too old" in said and "albumentations 2.0.9 is installed; albumentations==2.0.8 is needed" in said
    assert "not installed: timm, mlflow; pip install 'head-pose-distillation[workflows]'" in said
    assert "ray 2.56.0, torch missing" in bad.said


def demo(store: Path, *words: str) -> Any:
    return load(["demo"], [f"store={store}", *words])


def heads(train: int, row_bytes: float) -> Examined:
    return Examined("heads", DatasetSpec("synthetic", count=1), (), splits={"train": train}, row_bytes=row_bytes)


def test_the_store_is_to_be_writable_and_large_enough(tmp_path):
    assert look_at_store(tmp_path / "not" / "yet", 1e6).findings == () and not (tmp_path / "not").exists()
    assert look_at_store(tmp_path, 1e6).findings == () and list(tmp_path.iterdir()) == []
    assert "are needed" in look_at_store(tmp_path, 1e18).findings[0].text
    (tmp_path / "file").write_text("")
    assert "is a file" in look_at_store(tmp_path / "file" / "runs", 1.0).findings[0].text


def test_needed_bytes_are_those_of_rows_and_label_sets(tmp_path):
    spec = demo(tmp_path)
    labels = 1000 * len(spec.label_sets()) * 3 * 66 * 2
    assert spec.student.net.limit_deg == 99 and min(spec.student.net.bin_widths) == 3
    assert bytes_needed(spec, [heads(1000, 500.0)]) == 1000 * 500.0 + labels


def test_rows_are_compared_with_memory_and_with_temporary_files(tmp_path, monkeypatch):
    small, large = heads(10, 1.0), heads(10**9, 1.0)
    assert look_at_memory(demo(tmp_path), [small]).findings == ()
    (finding,) = look_at_memory(demo(tmp_path), [large]).findings
    assert finding.level == "error" and "TMPDIR" in finding.text
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**15))
    assert look_at_memory(demo(tmp_path), [large]).findings[0].level == "warning"
    assert look_at_memory(demo(tmp_path, "data.ingest=ray_data"), [large]).findings == ()

    def said(*words):
        return look_at_memory(demo(tmp_path, *words), [heads(1000, 1.0)]).said.split("; ")[1]

    assert said() == said("cluster.workers=2") == said("search.trials=8"), "they share the rows"
    for finalists, networks in ((2, 3), (5, 5), (99, 8)):  # of the widest stage: three teachers, or the finalists
        streamed = said("data.ingest=ray_data", f"search.finalists={finalists}", "search.trials=8")
        assert f"streams of {networks} networks" in streamed


def test_a_gpu_that_is_asked_for_has_to_be_there():
    import torch

    asked = look_at_gpu(ClusterSpec(gpus_per_worker=1), joins=False)
    assert bool(asked.findings) != torch.cuda.is_available()
    assert look_at_gpu(ClusterSpec(gpus_per_worker=1), joins=True).findings == ()


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


def test_networks_that_a_run_would_refuse_are_errors(tmp_path, monkeypatch):
    def unknown(spec: Any) -> list[str]:  # what asks timm in a process of its own has a test of its own
        return ["net.backbone 'resnet81' is no timm model"] * (spec.student.net.backbone == "resnet81")

    monkeypatch.setattr(machine, "unknown_backbones", unknown)
    for files in (machine, jobs):  # a look reads no weights
        monkeypatch.setattr(files, "file_sha256", None, raising=False)
    words = [f"student.net.pretrained={tmp_path / 'no.safetensors'}", f"teachers.resnet.start={tmp_path / 'nobody'}"]
    wrong = demo(tmp_path, "student.net.backbone=resnet81", *words)
    found = look_at_networks(wrong).findings
    assert [one.level for one in found] == ["error"] * 3, "all of them, and each once"
    for one, said in zip(found, ("resnet81", "nobody", "no.safetensors"), strict=True):
        assert said in one.text
    assert look_at_networks(demo(tmp_path)).findings == ()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A store whose publish stage has finished twice; the older one's file is none."""
    for name in ("b-older", "a-newer"):
        folder = tmp_path / "publish" / name
        (folder / "model").mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        write_onnx(folder / "model" / "student.int8.onnx")
    (tmp_path / "publish" / "b-older" / "model" / "student.int8.onnx").write_bytes(b"")
    os.utime(tmp_path / "publish" / "b-older", (1, 1))
    return tmp_path


@pytest.mark.parametrize(("off", "code"), [(0.4, 0), (1.5, 2), (float("nan"), 2), (None, 0)])
def test_a_published_file_that_openvino_reads_as_another_network_is_an_error(published, monkeypatch, capsys, off, code):
    monkeypatch.setattr(models, "has_openvino", lambda: off is not None)
    monkeypatch.setattr(
        runtimes, "openvino_call", lambda file: lambda faces: [runtimes.onnx_call(file)(faces)[0] + off]
    )
    (file,) = published_in(published)
    assert file.parts[-3] == "a-newer"
    assert doctor.main([f"model={file.parent}"]) == code
    told = capsys.readouterr().out
    assert ("error: model: OpenVINO reads" in told and "run the float file" in told) == (code == 2)
    assert ("0.40 degrees" in told) == (off == 0.4) and ("is not installed" in told) == (off is None)


def test_a_model_that_cannot_be_loaded_is_an_error(published, capsys):
    assert doctor.main([f"model={published / 'publish' / 'b-older' / 'model'}"]) == 2
    assert "error: model: " in capsys.readouterr().out
    assert published_in(published / "publish") == []


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
    silent = look_at_mlflow("http://user:secret@127.0.0.1:1")
    assert silent.findings[0].level == "warning" and "secret" not in f"{silent}"
    assert look_at_mlflow("none").findings == ()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["raeder=aflw2000", "root=x"], "unknown key raeder; did you mean 'reader'?"),
        (["reader=aflw200", "root=x"], "did you mean 'aflw2000'?"),
        (["faecs=3"], "unknown key faecs; did you mean 'faces'?"),
        (["faces=many"], "faces=many is no number"),
        (["data.crop.sise=3"], "unknown key data.crop.sise; did you mean 'size'?"),
        (["-c", "demo", "reader=aflw2000", "root=x"], "leave out -c demo"),
        (["reader=aflw2000"], "needs root"),
        ([f"model={__file__}"], "test_doctor.py is no ONNX file"),
        ([f"model={REPO / 'docs'}"], "no ONNX file lies in this folder"),
        (["reader=aflw2000", "out"], "'out' is no override; write key=value"),
        (["reader=aflw2000", "root=x", "convention.yaw_sgin=-1"], "did you mean 'yaw_sign'?"),
        ([f"out={__file__}/folder", "reader=aflw2000", "root=x"], "the folder cannot be made"),
    ],
)
def test_a_typo_is_one_sentence_before_anything_is_looked_at(words, said):
    with pytest.raises(SpecError) as caught:
        doctor.main(words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_demo_is_well_on_this_machine(tmp_path):
    """As a user runs it: the rendered heads agree with their landmarks, and the exit code says that all is well."""
    command = [sys.executable, "workflows/doctor.py", f"store={tmp_path / 'runs'}", "faces=24", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    tree = json.loads(done.stdout)
    assert done.returncode == 0 and tree["ok"], done.stderr + done.stdout
    assert tree["datasets"]["heads"]["convention"]["kind"] == "agrees"
    assert tree["datasets"]["heads"]["boxes"] == BOX_RULE
    assert tree["datasets"]["heads"]["found"] == sum(tree["datasets"]["heads"]["splits"].values()) == 3000
    assert set(tree["machine"]) == {"packages", "networks", "compute", "store", "memory", "Ray", "MLflow"}
    assert not (tmp_path / "runs").exists(), "a look changes nothing"
