"""Laws of predict on videos and cameras: a row a face, the file's own seconds, and nothing lost to an interruption."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.archives import picture
from tests.prediction.asking import refusal, table, write_video
from workflows import predict
from workflows.engine.commandline import EXIT_STOPPED
from workflows.prediction import opening
from workflows.prediction.faces import Face, FindFaces
from workflows.prediction.media.frames import Frame


def frames_of(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    found = []
    while (read := capture.read())[0]:
        found.append(read[1])
    return found, capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (65, 49)])
def test_a_video_becomes_a_video_and_a_row_a_face(here, onnx, width, height, capsys):
    write_video(here / "in.mp4", width=width, height=height)
    assert predict.main(["in.mp4", onnx, "boxes=whole"]) == 0
    before, after = frames_of(here / "in.mp4"), frames_of(Path("poses/in.mp4"))
    assert len(before[0]) == len(after[0]) == 8 and before[1] == after[1] == 12.5
    assert all(a.shape == b.shape and not np.array_equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    rows = table()
    assert [(row["file"], row["frame"]) for row in rows] == [("in.mp4", str(i)) for i in range(8)]
    np.testing.assert_allclose([float(row["seconds"]) for row in rows], np.arange(8) / 12.5, atol=1e-3)
    assert "8 frames, 8 faces" in capsys.readouterr().out


def without_length(path: Path) -> Path:
    """The Matroska file as a recorded stream is: its Duration (11 bytes) becomes a Void of the same size."""
    data = path.read_bytes()
    assert data.count(b"\x44\x89\x88") == 1
    start = data.index(b"\x44\x89\x88")
    path.write_bytes(data[:start] + b"\xec\x89" + bytes(9) + data[start + 11 :])
    return path


@pytest.mark.parametrize("name", ["streamed.mkv", "last.mpg"])
def test_seconds_are_the_file_s_own_whatever_it_knows(here, name):
    """The one has no length, and of the other FFmpeg gives the last frame without its time."""
    path = write_video(here / name, fps=25.0)
    video = opening.open_media([str(without_length(path) if path.suffix == ".mkv" else path)], here, upright=True)
    assert (video.total == 0) == (path.suffix == ".mkv") and not video.live
    frames = [frame for frame in video.frames() if isinstance(frame, Frame)]
    video.close()
    np.testing.assert_allclose([frame.seconds or 0.0 for frame in frames], np.arange(8) / 25, atol=1e-3)


def test_a_limit_of_frames_and_no_drawing(here, onnx, capsys):
    write_video(here / "in.mp4")
    assert predict.main(["in.mp4", onnx, "boxes=whole", "frames=3", "draw=false", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["frame"] for row in rows] == [0, 1, 2] and not Path("poses").exists()


@pytest.mark.parametrize("name", ["in.mp4", "streamed.mkv"])
def test_an_interruption_keeps_what_was_seen(here, onnx, monkeypatch, name):
    write_video(here / name)
    if name == "streamed.mkv":
        without_length(here / name)
    whole = predict.face_finder

    def finder(*words: Any) -> FindFaces:
        find = whole(*words)

        def until_the_third(frame: Frame) -> list[Face]:
            if frame.number == 3:
                raise KeyboardInterrupt
            return find(frame)

        return until_the_third

    monkeypatch.setattr(predict, "face_finder", finder)
    assert predict.main([name, onnx, "boxes=whole"]) == EXIT_STOPPED
    assert len(table()) == 3 and len(frames_of(Path("poses", name).with_suffix(".mp4"))[0]) == 3


def test_videos_that_are_none_or_cut_off_are_told(here, onnx, capsys):
    Path("text.mp4").write_text("no video")
    Path("empty.mp4").write_bytes(b"")
    for name in ("text.mp4", "empty.mp4"):
        assert refusal(name, onnx, "boxes=whole").startswith(f"{name} cannot be opened as a video: Invalid data")
    writer = cv2.VideoWriter("cut.avi", cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for i in range(20):
        writer.write(picture(i, 48, 64))
    writer.release()
    data = Path("cut.avi").read_bytes()
    Path("cut.avi").write_bytes(data[: len(data) // 2])
    assert predict.main(["cut.avi", onnx, "boxes=whole"]) == 2
    assert 0 < len(table()) < 18 and "cut.avi ends after" in capsys.readouterr().err


class Camera:
    """Stands in for OpenCV's: knows no rate and no end, until somebody presses Ctrl-C."""

    def __init__(self, source: int) -> None:
        self.asked, self.frames = source, 0

    def isOpened(self) -> bool:
        return self.asked == 2

    def get(self, key: int) -> float:
        return -1.0

    def read(self) -> tuple[bool, np.ndarray]:
        self.frames += 1
        if self.frames > 4:
            raise KeyboardInterrupt
        return True, picture(self.frames, 48, 64)

    def release(self) -> None:
        self.asked = -1


def test_a_camera_ends_with_ctrl_c_and_that_is_success(here, onnx, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    assert predict.main(["2", onnx, "boxes=whole"]) == 0
    monkeypatch.undo()
    frames, _ = frames_of(here / "poses" / "camera-2.mp4")
    assert len(frames) == len(table(here / "poses")) == 4
