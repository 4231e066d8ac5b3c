"""The doctor: it finds what is wrong with datasets, and is silent where nothing is."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as Pil
from PIL.ExifTags import Base

from hpe_core.datasets.base import FaceRow
from hpe_core.datasets.readers.aflw import AMONG_68
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import BOX_RULE
from hpe_core.geometry.rotation import euler_to_matrix
from hpe_core.render.person.anatomy import landmark_targets
from hpe_core.spec.data import ConventionSpec, CropSpec, DatasetSpec, DataSpec
from tests.archives import as_stored, picture, write_300w, write_aflw, write_aflw2000, write_average_heads
from tests.datasets.test_leaks import LEARNT, table
from workflows import doctor
from workflows.checks.convention import check_labels
from workflows.checks.data import _solved, convention_findings, examine, histogram, in_lines, sample
from workflows.checks.findings import Look, error, warning
from workflows.engine.config import REPO

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


def test_poses_that_were_solved_from_landmarks_are_not_checked_by_them(tmp_path):
    for number, pose in enumerate(POSES):
        write_300w(tmp_path, f"face{number}", 0.5 * (HEAD @ euler_to_matrix(pose).T)[:, :2] + [60, 50])
    spec = DatasetSpec("300w", root=str(tmp_path))
    seen = examine("it", spec, DataSpec({"it": spec}, ("it",), ()), 0, "", planned=False)
    assert seen.looked_at == len(seen.kept) == len(POSES) and seen.verdict is None
    assert not any(finding.level == "error" for finding in seen.findings)
    assert "unchecked: no landmarks, or poses that come from them" in "\n".join(in_lines(seen))


def test_a_picture_that_is_trained_and_tested_on_is_an_error(tmp_path):
    datasets = {"learnt": table(tmp_path / "train.csv", LEARNT)}
    datasets["asked"] = table(tmp_path / "test.csv", {"b.png": "test"}, pictures=False)
    seen = doctor.look_at_data(DataSpec(datasets, ("learnt",), ("asked",)), 0, "", None, planned=True)
    found = [finding for one in seen for finding in one.findings if finding.level == "error"]
    assert [finding.text.startswith("dataset 'asked' is tested on") for finding in found] == [True]


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
def test_a_wrong_convention_has_its_words_and_its_keys(convention, words, keys):
    verdict = check_labels(as_stored(POSES, convention), euler_to_matrix(POSES), ConventionSpec())
    (said,) = convention_findings("it", verdict, ConventionSpec(), "")
    assert said.level == "error" and said.text.startswith(f"{words}: set {keys} (labels lie ")


def test_a_wrong_archive_is_found_and_the_advice_mends_it(tmp_path, capsys):
    write_faces(tmp_path, ConventionSpec(order="yaw_pitch_roll"))
    tree = looked_at(tmp_path, capsys)
    (said,) = errors(tree)
    keys = "convention.order=yaw_pitch_roll"
    assert f": set {keys} (labels lie " in said and tree["code"] == 2 and not tree["ok"]
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


def photographs(root: Path, exif: Sequence[int], people: Sequence[str] = (), splits: Sequence[str] = ()) -> DataSpec:
    """A manifest whose pictures have these EXIF orientations; it is trained and tested on."""
    for number, way in enumerate(exif):
        notes = Pil.Exif()
        notes[Base.Orientation] = way
        Pil.fromarray(picture(number, 60, 60)).save(root / f"{number}.jpg", exif=notes if way else b"")
    rows = [f"{i}.jpg,{10 * i},{-5 * i},{i},10,10,50,50" for i in range(len(exif))]
    columns = {"group": people, "split": splits}
    header = ",".join(["path,pitch,yaw,roll,x1,y1,x2,y2", *(name for name, values in columns.items() if values)])
    lines = [",".join(line) for line in zip(rows, *filter(None, columns.values()), strict=True)]
    (root / "manifest.csv").write_text("\n".join([header, *lines]))
    spec = DatasetSpec("manifest", root=str(root), val=0.2, test=0.4)
    return DataSpec({"mine": spec}, ("mine",), ("mine",), crop=CropSpec(size=32, margin_px=0))


def said_of(data: DataSpec, *, planned: bool = True) -> list[str]:
    return [found.text for found in examine("mine", data.datasets["mine"], data, 0, "", planned=planned).findings]


def test_pictures_that_others_would_turn_are_told(tmp_path):
    """Most programs that label pictures turn them by EXIF, and boxes would then be of other pixels."""
    data = photographs(tmp_path, [0, 1, 6, 3, 0], people="abcab")
    (told,) = said_of(data, planned=False)
    assert told.startswith("2 of 5 pictures have an EXIF orientation, which is not applied")
    assert said_of(photographs(tmp_path, [0, 1, 1], people="abc"), planned=False) == []


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({}, True),
        ({"people": "abcdef"}, True),
        ({"people": "aabbcc"}, False),
        ({"splits": ("train", "train", "val", "val", "test", "test")}, False),
    ],
)
def test_a_table_without_persons_is_told(tmp_path, columns, told):
    """Frames of one video would lie on both sides of the split, and nothing else would show it."""
    said = [text for text in said_of(photographs(tmp_path, [0] * 6, **columns)) if "a person of its own" in text]
    assert len(said) == told and all("6 pictures" in text and "column group" in text for text in said)


def test_an_aflw_in_degrees_without_landmarks_is_suspected(tmp_path, capsys):
    poses = (np.tile(POSES, (2, 1)) * [1, 1, -1]).tolist()
    faces = [{"face": i + 1, "file": f"a{i}.jpg", "rect": (40, 15, 50, 60), "pose": p} for i, p in enumerate(poses)]
    write_aflw(tmp_path, faces)
    said = [one["text"] for one in looked_at(tmp_path, capsys, reader="aflw")["findings"]]
    assert "convention.unit=degrees_as_radians" in said[0]
    mended = looked_at(tmp_path, capsys, "convention.unit=degrees_as_radians", reader="aflw")
    assert mended["datasets"]["aflw"]["filtered"] == 0 and len(mended["findings"]) == 1, "it is a part of AFLW"


def test_an_archive_that_may_not_be_read_is_a_finding(tmp_path, monkeypatch):
    def shut(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", shut)
    data = DataSpec({"mine": DatasetSpec("manifest", root=str(tmp_path))}, train=("mine",), test=())
    (finding,) = examine("mine", data.datasets["mine"], data, 4, "", planned=False).findings
    assert finding.level == "error" and "Permission denied" in finding.text and str(tmp_path) in finding.text


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


def test_of_each_reason_the_first_face_is_told(tmp_path, capsys):
    rows = [f"{i}.png,{'nan' if i % 3 == 1 else i},2,3,5,5,50,50" for i in range(9)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,pitch,yaw,roll,x1,y1,x2,y2", *rows]))
    for i in range(9):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture(i))
    told = looked_at(tmp_path, capsys, reader="manifest")["datasets"]["manifest"]
    assert told["rejected"] == {"nan_pose": 3} and "row 2: its pose" in told["examples"]["nan_pose"]


def test_errors_come_before_warnings(capsys):
    looks = [Look("Ray", "one", warning("Ray", "may be meant")), Look("GPU", "none", error("GPU", "must be mended"))]
    assert doctor.conclude(looks, [], as_json=False) == 2
    assert capsys.readouterr().out.splitlines()[-2:] == ["error: GPU: must be mended", "warning: Ray: may be meant"]
    assert doctor.conclude(looks[:1], [], as_json=False) == 0


def test_a_stretched_crop_has_the_pose_of_the_picture():
    """Its pixels are wider than high; heads are solved from landmarks as the camera saw them."""
    source = open_source(DatasetSpec("synthetic", count=6, image_px=160))
    refs = sorted(source.refs())
    square, stretched = (load_directly(source, CropSpec(64, 0, shape=shape), refs) for shape in ("square", "stretch"))
    for one, other in zip(square, stretched, strict=True):
        assert isinstance(one, FaceRow) and isinstance(other, FaceRow) and other.crop.scale_x != other.crop.scale_y
        np.testing.assert_allclose(_solved(one), _solved(other), atol=1e-3)


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


@pytest.mark.longer
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
