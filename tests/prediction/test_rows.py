"""Laws of what a run leaves: the table, JSON and drawn copies say the same, at once, whoever is in the picture."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pil

from hpe_core.detection.detector import Detection
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Box
from hpe_core.predictor import BATCH, HeadPosePredictor
from tests.archives import picture
from tests.prediction.asking import angles, refusal, save, table
from workflows import predict
from workflows.prediction import faces, loop
from workflows.prediction.faces import LOOKS, Face, face_finder
from workflows.prediction.keys import PredictSpec
from workflows.prediction.loop import Tally
from workflows.prediction.media.frames import Frame, Unusable
from workflows.prediction.media.pictures import files
from workflows.prediction.opening import open_media
from workflows.prediction.output import TABLE, Row, csv_table
from workflows.prediction.tracks import OneEuro


@pytest.fixture(scope="module")
def predictor() -> HeadPosePredictor:
    return HeadPosePredictor.load(threads=1)


class Series:
    """Frames at these times, of which nobody knows how many there will be."""

    noun, live, moving = "frame", True, True
    names, left_out = ["series"], Counter[str]()

    def __init__(self, times: list[Fraction], total: int = 0) -> None:
        self.times, self.total, self.drawn = times, total, list[np.ndarray]()

    def frames(self) -> Iterator[Frame | Unusable]:
        for number, time in enumerate(self.times):
            yield Frame("series", number, picture(number, 60, 80), time)

    def keep(self, frame: Frame, drawn: np.ndarray) -> None:
        self.drawn.append(drawn)

    def close(self) -> None:
        pass


def seen(media: Series, predictor: HeadPosePredictor, **keys: object) -> list[Row]:
    rows = list[Row]()
    spec = PredictSpec(boxes="whole", **keys)
    loop.predict(media, lambda frame: [Face(Box(5, 5, 60, 55))], predictor, spec, rows.append, Tally())
    return rows


def test_a_smoothed_row_is_the_filter_over_the_rows_at_their_stamps_and_the_copy_shows_it(predictor, monkeypatch):
    times, shown = [Fraction(at, 1000) for at in (0, 20, 500, 510, 1300)], []
    monkeypatch.setattr(loop, "drawn", lambda image, faces, angles, marks: shown.append(angles))
    plain, smoothed = (seen(Series(times), predictor, smooth=seconds) for seconds in (0.0, 0.4))
    follow = OneEuro(0.4)
    expected = [follow(pose, float(at)) for pose, at in zip(angles(plain), times, strict=True)]
    np.testing.assert_allclose(angles(smoothed), expected, atol=1e-2)
    np.testing.assert_allclose(np.concatenate(shown), np.concatenate([angles(plain), angles(smoothed)]), atol=1e-4)
    assert np.abs(angles(smoothed) - angles(plain)).max() > 1


def test_where_nobody_knows_the_number_of_frames_it_is_told_from_time_to_time(predictor, monkeypatch, capsys):
    times = [Fraction(at, 25) for at in range(3)]
    seen(Series(times), predictor, draw=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(loop, "TOLD_EVERY_S", 0.0)
    seen(Series(times), predictor, draw=False)
    assert "2 frames, 2 faces" in capsys.readouterr().err
    seen(Series(times, total=3), predictor, draw=False, frames=2)
    assert "poses: 2 of 2 frames (100 %)" in capsys.readouterr().err


def test_the_table_and_json_say_the_same_of_every_name_that_a_disk_takes(here, capsys):
    for number, name in enumerate((b"a,b\"c'.png", b"n\nl.png", b"b\xff.png", "ü 顔.png".encode(), b" .PNG")):
        Path("in").mkdir(exist_ok=True)
        assert cv2.imwrite("x.png", picture(number, 60, 80))
        os.rename(b"x.png", b"in/" + name)
    assert predict.main(["in", "boxes=whole", "draw=false"]) == 0
    rows = table()
    capsys.readouterr()
    assert predict.main(["in", "boxes=whole", "draw=false", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [{key: "" if value is None else str(value) for key, value in line.items()} for line in lines] == rows
    assert {row["file"] for row in rows} == {"a,b\"c'.png", r"n\nl.png", r"b\xff.png", "ü 顔.png", " .PNG"}


def test_a_row_is_on_the_disk_as_soon_as_it_is_put(tmp_path):
    with csv_table(tmp_path, tracks=False) as put:
        for count in range(1, 3):
            put({"file": "a.png", "face": count})
            with open(tmp_path / TABLE, newline="") as stream:
                assert len(list(csv.DictReader(stream))) == count


def test_a_crowd_is_answered_face_by_face(predictor):
    """More faces than the network takes at once."""
    image, random = picture(3, 120, 160), np.random.default_rng(0)
    corners = random.uniform(0, 80, (2 * BATCH + 3, 2))
    boxes = np.concatenate([corners, corners + random.uniform(20, 40, corners.shape)], axis=1)
    crowd = predictor.predict(image, boxes)
    for at in (0, BATCH - 1, BATCH, 2 * BATCH + 2):
        alone = predictor.predict(image, boxes[at : at + 1])
        np.testing.assert_allclose(crowd.angles[at], alone.angles[0], atol=1e-3)
        np.testing.assert_allclose(crowd.spread[at], alone.spread[0], atol=1e-3)


def test_pictures_come_in_the_order_of_their_names_whatever_the_disk_says(here, monkeypatch):
    for name in "cab":
        save(Path("in", f"{name}.png"), picture(0))
    monkeypatch.setattr(files, "listing", lambda *asked: iter(["c.png", "a.png", "b.png"]))
    assert open_media(["in"], here / "out", upright=True).names == ["a.png", "b.png", "c.png"]


def test_a_picture_that_needs_too_much_memory_is_told_and_the_next_one_follows(here, monkeypatch):
    from workflows.prediction.media import pictures

    for name in "ab":
        save(Path("in", f"{name}.png"), picture(0))
    decode = pictures.decode_within

    def short(data: bytes, name: str, limit: int) -> object:
        if name.endswith("a.png"):
            raise MemoryError
        return decode(data, name, limit)

    monkeypatch.setattr(pictures, "decode_within", short)
    first, second = open_media(["in"], here / "out", upright=True).frames()
    assert isinstance(first, Unusable) and "a.png needs more memory" in first.said and isinstance(second, Frame)


@pytest.mark.parametrize(
    "words",
    [
        ["other/a.png", "in", "out=in"],
        ["in", "other/a.png", "out=in"],
        ["other", "top/in", "out=top"],
        ["in", "out=linked"],
        ["in/b.png", "in/a.png", "out=linked"],
        ["in/b.png", "out=turned"],
        ["other/poses.csv", "boxes=whole", "out=other"],
    ],
)
def test_no_picture_that_was_named_is_written_over(here, words):
    """Neither by the drawn copy of another one, nor by the table, nor behind a link; and then nothing is written."""
    for seed, name in enumerate(("in/a.png", "in/b.png", "other/a.png", "other/in/a.png", "top/in/a.png")):
        save(Path(name), picture(seed))
    Path("other/poses.csv").write_bytes(Path("in/a.png").read_bytes())
    for folder, link, target in (("linked", "b.png", "../in/a.png"), ("turned", "b.png", "../in/b.png")):
        Path(folder).mkdir()
        Path(folder, link).symlink_to(target)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    said = refusal(*words, *([] if "boxes=whole" in words else ["boxes=whole"]))
    assert "is read, and would be written over; choose another folder with out=FOLDER" in said
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("bad", "limit", "shown"), [("z", 0, 3), ("0", 0, 3), ("z", 2, 2), ("0", 2, 3), ("a1", 1, 1)])
def test_progress_comes_to_its_end_once_whichever_picture_cannot_be_read(here, capsys, bad, limit, shown):
    for name in "ab":
        save(Path("in", f"{name}.png"), picture(0))
    Path("in", f"{bad}.png").write_text("<html>")
    predict.main(["in", "boxes=whole", "draw=false", f"frames={limit}"])
    said = capsys.readouterr().err
    assert said.count("(100 %)") == (shown > 1) and (shown == 1 or f"{shown} of {shown} pictures (100 %)" in said)


def test_a_table_that_finds_the_disk_full_is_named(here):
    save(Path("a.png"), picture(0))
    Path("poses").mkdir()
    Path("poses", TABLE).symlink_to("/dev/full")
    assert refusal("a.png", "boxes=whole", "draw=false") == f"poses/{TABLE} cannot be written: No space left on device"
    said = "rows/poses.csv cannot be written: No space left"
    with pytest.raises(SpecError, match=said), csv_table(Path("rows"), tracks=False) as put:
        put({"file": "a.png"})
        (opened,) = (int(fd.name) for fd in Path("/proc/self/fd").iterdir() if fd.resolve() == here / "rows" / TABLE)
        with open("/dev/full", "w") as full:
            os.dup2(full.fileno(), opened)  # from here on the disk is full
        put({"file": "b.png"})
    assert [row["file"] for row in table(Path("rows"))] == ["a.png"], "what was seen is kept"


def test_an_earlier_run_behind_a_link_is_not_looked_at(here):
    save(Path("in", "a.png"), picture(0))
    Path("link").symlink_to("in")
    for _ in range(2):
        assert predict.main(["in", "boxes=whole", "out=link/poses"]) == 0
        assert [row["file"] for row in table(Path("in/poses"))] == ["a.png"]


def test_an_entry_that_fits_pictures_of_two_folders_is_refused(here):
    for name in ("x/a.png", "y/a.png"):
        save(Path("in", name), picture(0))
    Path("b.json").write_text(json.dumps({"a.png": [{"bbox": [1, 1, 50, 50]}]}))
    assert "entry 'a.png' fits x/a.png and y/a.png" in refusal("in", "boxes=b.json", "draw=false")


@pytest.mark.parametrize(
    "keys",
    [
        {"box_scale": 0.19},
        {"box_scale": 5.01},
        {"box_scale": float("nan")},
        {"min_confidence": 1.0},
        {"min_confidence": -0.1},
        {"min_confidence": float("nan")},
        {"smooth": 10.1},
        {"smooth": float("nan")},
        {"turns": 2},
        {"frames": -1},
        {"max_pixels": 0},
        {"model": ""},
        {"out": ""},
    ],
    ids=str,
)
def test_a_key_outside_its_range_is_refused_by_name(keys):
    with pytest.raises(SpecError, match=f"^{next(iter(keys))} "):
        PredictSpec(boxes="whole", **keys)


def test_an_animation_declares_no_more_pixels_than_are_decoded_and_its_last_frame_stays_as_long_as_it_says(here):
    import av

    images = [Pil.fromarray(picture(seed, 48, 64)) for seed in range(2)]
    images[0].save("a.gif", save_all=True, append_images=images[1:], duration=[100, 900])
    with pytest.raises(SpecError, match=r"a\.gif declares 64 x 48 pixels; at most 3071"):
        open_media(["a.gif"], here / "out", upright=True, max_pixels=64 * 48 - 1)
    assert predict.main(["a.gif", "boxes=whole"]) == 0
    with av.open("poses/a.mp4") as copy:
        assert copy.duration == pytest.approx(1_000_000, abs=20_000)


BOX = Box(10, 20, 30, 40)


def looks(monkeypatch: pytest.MonkeyPatch, upright: list[float], lying: float, frames: int) -> tuple[int, list[str]]:
    """How often a detector with these scores looks around, and what is said of it."""
    around, said = [], list[str]()

    def find(detect: object, image: np.ndarray, side: int, *, tiles: bool, turns: int) -> list[Detection]:
        around.append(turns)
        return [Detection(BOX, lying, 2)] if turns == 4 else [Detection(BOX, score) for score in upright]

    monkeypatch.setattr(faces, "FaceDetector", lambda spec: None)
    monkeypatch.setattr(faces, "find_faces", find)
    ask = face_finder(PredictSpec(detector="y.onnx"), Series([]), said.append)
    for number in range(frames):
        ask(Frame("a.jpg", number, picture(0, 60, 80), scale=4, size=(320, 240)))
    return around.count(4), said


def test_who_may_lie_is_looked_at_again_only_where_a_face_is_unsure_and_not_for_ever(monkeypatch):
    assert looks(monkeypatch, [0.95, 0.91], 0.9, 5) == (0, [])
    assert looks(monkeypatch, [], 0.7, 5) == (5, [])
    assert looks(monkeypatch, [0.95, 0.7], 0.79, LOOKS + 5) == (LOOKS, []), "what is so unsure may be no face"
    count, (said,) = looks(monkeypatch, [0.95, 0.7], 0.81, 5)
    assert count == 1 and "the face at (80, 120) seems to lie upside down" in said, "in pixels of the file"
