"""One reader that misbehaves on command: the sandbox must lose exactly the faces that do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from hpe_core.datasets.base import Annotation, FaceRef, FaceRow, Reader, Rejected
from hpe_core.datasets.sandbox import Sandbox, check_box, load_face
from hpe_core.geometry.crop import Box, Image
from hpe_core.spec.data import CropSpec, DatasetSpec

CROP = CropSpec(size=16, margin_px=2)


class Trouble(Reader):
    """The key of a reference says what its loading does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(DatasetSpec(reader="aflw2000", root=str(folder)))
        self.folder = folder

    def refs(self) -> Iterator[FaceRef]:
        for path in sorted(self.folder.iterdir()):
            yield FaceRef(path.name, path.name, path.read_text())

    def states(self, refs: Sequence[FaceRef]) -> list[str]:
        return [ref.key for ref in refs]

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        pose = (1.0, 2.0, 3.0)
        if ref.key == "exit":
            os._exit(3)
        elif ref.key == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif ref.key == "hang":
            time.sleep(1000)
        elif ref.key == "raise":
            raise ZeroDivisionError("who would\nhave thought")
        elif ref.key == "memory":
            np.ones(6 << 30, np.uint8)
        elif ref.key == "reject":
            raise Rejected("no_box", "none there")
        elif ref.key == "nan":
            pose = (1.0, float("nan"), 3.0)
        elif ref.key == "print":
            print("noise on stdout", flush=True)
            os.write(2, b"noise on stderr\n")
        elif ref.key == "once":  # dies the first time only
            marker = self.folder / f".{ref.sample_id}"
            if not marker.exists():
                marker.touch()
                os._exit(1)
        elif ref.key == "flat":  # no picture: the crop raises
            return Annotation(Box(5, 5, 25, 25), pose), np.zeros((40, 40, 3))
        colour = int(ref.sample_id.removeprefix("face")) % 251 if ref.key == "paint" else 77
        return Annotation(Box(5, 5, 25, 25), pose), np.full((40, 40, 3), colour, np.uint8)


def refs(*keys: str) -> list[FaceRef]:
    return [FaceRef(f"face{i}", "g", key) for i, key in enumerate(keys)]


def outcome(answer: FaceRow | Rejected) -> str:
    return answer.reason if isinstance(answer, Rejected) else "kept"


def test_each_face_gets_its_own_verdict(tmp_path, capfd):
    """And what decoders print reaches nobody: stdout may be a program's."""
    keys = ["ok", "exit", "print", "raise", "segfault", "ok", "reject", "nan", "memory", "exit", "exit", "once", "ok"]
    ends = {"kept": "ok print once", "decoder_crashed": "exit segfault", "reader_failed": "raise", "no_box": "reject"}
    ends |= {"nan_pose": "nan", "too_large": "memory"}
    with Sandbox(Trouble(tmp_path), CROP) as sandbox:
        answers = list(sandbox.load_many(refs(*keys)))
        again = list(sandbox.load_many(refs("ok", "ok")))
    assert all(key in ends[outcome(answer)].split() for key, answer in zip(keys, answers, strict=True))
    assert [outcome(answer) for answer in again] == ["kept", "kept"]
    assert capfd.readouterr() == ("", "")
    rows = [answer for answer in answers if isinstance(answer, FaceRow)]
    assert [row.sample_id for row in rows] == ["face0", "face2", "face5", "face11", "face12"]
    assert all(row.crop.pixels.shape == (20, 20, 3) for row in rows)
    details = {outcome(a): a.detail for a in answers if isinstance(a, Rejected)}
    assert "\n" not in details["reader_failed"] and "ZeroDivisionError" in details["reader_failed"]
    assert "face10" in details["decoder_crashed"] and "exit status 3" in details["decoder_crashed"]


def test_each_face_has_its_own_pixels(tmp_path):
    """Over several requests, and around faces that end the process, are rejected, or raise in the crop."""
    keys = ["paint"] * 150
    keys[70], keys[71], keys[100] = "exit", "reject", "flat"
    with Sandbox(Trouble(tmp_path), CROP, timeout_s=30) as sandbox:
        answers = list(sandbox.load_many(refs(*keys)))
    found = {i: outcome(answer) for i, answer in enumerate(answers) if outcome(answer) != "kept"}
    assert found == {70: "decoder_crashed", 71: "no_box", 100: "reader_failed"}
    for i, answer in enumerate(answers):
        if isinstance(answer, FaceRow):
            assert (answer.crop.pixels == i % 251).all(), i


def test_the_child_imports_nothing_from_the_folder_it_is_started_in(tmp_path, monkeypatch):
    for name in ("mmap", "socket", "pickle"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not that one')")
    monkeypatch.chdir(tmp_path)
    with Sandbox(Trouble(tmp_path), CROP, timeout_s=30) as sandbox:
        assert outcome(next(sandbox.load_many(refs("paint")))) == "kept"


def test_a_program_without_a_main_guard_may_load_faces(tmp_path):
    """The child runs nothing of the program that started it, so it costs no second start of that program either."""
    program = tmp_path / "program.py"
    program.write_text(
        "from pathlib import Path\n"
        "from tests.datasets.test_sandbox import CROP, Sandbox, Trouble, outcome, refs\n"
        "print('started')\n"
        "with Sandbox(Trouble(Path('.')), CROP, timeout_s=30) as box:\n"
        "    print(outcome(next(box.load_many(refs('ok')))))\n"
    )
    path = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env={**os.environ, **path})
    assert done.stdout.split() == ["started", "kept"], done.stderr


def test_a_hanging_face_is_given_up_and_the_rest_goes_on(tmp_path):
    began = time.monotonic()
    with Sandbox(Trouble(tmp_path), CROP, timeout_s=0.6) as sandbox:
        answers = list(sandbox.load_many(refs("ok", "hang", "ok")))
    assert [outcome(answer) for answer in answers] == ["kept", "decoder_hung", "kept"]
    assert time.monotonic() - began < 20


def test_answers_of_an_abandoned_call_are_not_mixed_up(tmp_path):
    with Sandbox(Trouble(tmp_path), CROP) as sandbox:
        half = sandbox.load_many(refs("ok", "ok", "ok"))
        next(half)
        half.close()
        answers = list(sandbox.load_many([FaceRef("other", "g", "ok")]))
    assert [answer.sample_id for answer in answers if isinstance(answer, FaceRow)] == ["other"]


def test_no_child_outlives_its_parent(tmp_path):
    """The parent is killed while the child hangs in C code that never looks at the pipe."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tests.datasets.test_sandbox import CROP, Sandbox, Trouble, refs\n"
        "box = Sandbox(Trouble(Path(sys.argv[2])), CROP, timeout_s=1.0)\n"
        "list(box.load_many(refs('ok'))); print(box._child.pid, flush=True)\n"
        "list(box.load_many(refs('hang')))\n"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).resolve().parents[2]), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and _alive(child):
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_a_child_that_cannot_start_is_nobodys_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="does not start"):
        list(Sandbox(Trouble(tmp_path), CROP).load_many(refs("ok")))


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (Box(10, 10, 30, 30), None),
        (Box(-8, -8, 12, 12), None),  # a little more than a third is inside
        (Box(-12, -12, 8, 8), None),  # a sixth: what leaves the picture is padded, not dropped
        (Box(-180, -180, 200, 200), None),  # ten times as large as the picture
        (Box(-39, -39, 1, 1), "box_outside"),  # one pixel of 1,600
        (Box(100, 100, 120, 120), "box_outside"),
        (Box(40, 5, 60, 25), "box_outside"),  # touches the edge
        (Box(-1e9, -1e9, 1e9, 1e9), "box_outside"),
        (Box(-1e308, -1e308, 1e308, 1e308), "box_outside"),
        (Box(10, 10, 10, 30), "box_degenerate"),
        (Box(30, 10, 10, 30), "box_degenerate"),
        (Box(10, 10, 10.5, 30), "box_degenerate"),
        (Box(float("nan"), 10, 20, 30), "bad_annotation"),
        (Box(10, 10, float("inf"), 30), "bad_annotation"),
    ],
)
def test_boxes(box, reason):
    if reason is None:
        check_box(box, 40, 40, "face")
    else:
        with pytest.raises(Rejected) as caught:
            check_box(box, 40, 40, "face")
        assert caught.value.reason == reason and "face" in caught.value.detail


@pytest.mark.parametrize("scale", [0.2, 0.87, 1.0, 1.5])
def test_no_face_is_kept_of_which_the_window_shows_nothing(tmp_path, scale):
    """A box at the edge reaches into the picture, and what a tighter crop shows of it may not."""

    class AtTheEdge(Trouble):
        def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
            return Annotation(Box(40 - float(ref.key), 5, 65 - float(ref.key), 30), (0.0, 0.0, 0.0)), white

    white, crop = np.full((40, 40, 3), 255, np.uint8), CropSpec(size=16, margin_px=2, box_scale=scale)
    outside = 25 * max(0.0, 1 - scale) / 2  # columns of the box that its window does not show
    for inside in (0.5, 1.0, 2.0, outside + 0.7, outside + 5):
        ref = FaceRef("face", "somebody", str(inside))
        if inside < outside:
            with pytest.raises(Rejected) as caught:
                load_face(AtTheEdge(tmp_path), ref, crop)
            assert caught.value.reason == "box_outside"
        else:
            kept = load_face(AtTheEdge(tmp_path), ref, crop)
            assert inside < 2 or kept.crop.pixels[2:-2, 2:-2].max() > 0


def test_landmarks_are_stored_in_window_pixels(tmp_path):
    class Marked(Trouble):
        def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
            annotation, image = super().load(ref)
            points = np.tile(np.array([[5.0, 25.0]], np.float32), (68, 1))
            seen = None if ref.key == "print" else np.arange(68) < 10
            return Annotation(annotation.box, annotation.pose, points, seen), image

    row = load_face(Marked(tmp_path), refs("ok")[0], CROP)
    assert row.landmarks is not None and row.landmarks.shape == (68, 3)
    assert np.allclose(row.landmarks[:, :2], [0, 16]) and row.landmarks[:, 2].sum() == 10
    unsaid = load_face(Marked(tmp_path), refs("print")[0], CROP).landmarks
    assert unsaid is not None and np.isnan(unsaid[:, 2]).all(), "nobody said what is seen"
    assert np.array_equal(unsaid[:, :2], row.landmarks[:, :2])
