"""What `predict` leaves: a row a face, as a table or as JSON lines, and the picture with the faces' axes."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpe_core.datasets.files import printable
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Image
from hpe_core.geometry.draw import draw_axes, draw_landmarks
from hpe_core.geometry.rotation import ANGLE_NAMES
from workflows.engine.config import tell
from workflows.prediction.faces import Face
from workflows.prediction.media.frames import Frame

TABLE = "poses.csv"
DECIMALS = {"x1": 2, "y1": 2, "x2": 2, "y2": 2}  # of pixels; angles and scores have 4
SPREADS = [f"{name}_spread" for name in ANGLE_NAMES]
TRACK = "track"  # a person's number in a video; pictures have none
LANDMARKS = "landmarks"  # of a network that answers them: 68 times x, y and how surely it is seen, as JSON
COLUMNS = ["file", "frame", "seconds", "face", TRACK, "x1", "y1", "x2", "y2", "score", *ANGLE_NAMES, *SPREADS]
COLUMNS += ["confidence"]
Row = dict[str, Any]
Angles = NDArray[Any]  # degrees


def row_of(
    frame: Frame, number: int, face: Face, track: int | None, angles: Angles, spread: Angles, sure: float
) -> Row:
    """One face as COLUMNS name it: pixels of the file, degrees, standard deviations, and the chance that no angle is
    off by more than 10 degrees."""
    box = frame.in_file(face.box)
    seen = (printable(frame.name), frame.number, frame.seconds, number, track)
    values = [*seen, box.x1, box.y1, box.x2, box.y2, face.score, *map(float, [*angles, *spread, sure])]
    row = dict(zip(COLUMNS, values, strict=True))
    if track is None:
        del row[TRACK]
    return {name: round(v, DECIMALS.get(name, 4)) if isinstance(v, float) else v for name, v in row.items()}


@contextmanager
def csv_table(out: Path, tracks: bool, landmarks: bool = False) -> Iterator[Callable[[Row], None]]:
    """Writes rows into the table, each at once: what was seen outlives an interruption. Raises SpecError that names the
    file, also of the row that finds the disk full."""
    with _writing(out / TABLE):
        out.mkdir(parents=True, exist_ok=True)
        stream = open(out / TABLE, "w", newline="", encoding="utf-8", buffering=1)  # noqa: SIM115  # closed below
    columns = [name for name in COLUMNS if tracks or name != TRACK] + [LANDMARKS] * landmarks
    writer = csv.DictWriter(stream, columns)

    def put(row: Row) -> None:
        with _writing(out / TABLE):
            writer.writerow(row)

    try:
        put(dict(zip(columns, columns, strict=True)))
        yield put
    finally:
        with _writing(out / TABLE):  # a full disk is met once more by what is still to be written
            stream.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror}") from None


class ReaderGone(Exception):
    """Nobody reads the rows that are printed."""


def json_lines(drawing: bool) -> Callable[[Row], None]:
    """Prints rows. Raises ReaderGone where nobody reads them, and no copy of the picture is `drawing` for them."""

    def put(row: Row) -> None:
        if not tell(json.dumps(row)) and not drawing:
            raise ReaderGone

    return put


def landmark_text(frame: Frame, marks_L3: Angles) -> str:
    """A face's landmarks as JSON, in pixels of the file."""
    points = np.asarray(marks_L3, np.float64) * [frame.scale, frame.scale, 1]
    return json.dumps([[round(x, 2), round(y, 2), round(seen, 3)] for x, y, seen in points.tolist()])


def drawn(image: Image, faces: Sequence[Face], angles: Angles, marks: Angles | None = None) -> Image:
    """The picture with each face's axes: as long as half the box's longer side, thick by its shorter one; and with its
    landmarks, if they are known."""
    for face, points in zip(faces, () if marks is None else marks, strict=marks is not None):
        image = draw_landmarks(image, points, max(1, round(min(face.box.width, face.box.height) / 80)))
    for face, pose in zip(faces, angles, strict=True):
        width, height = face.box.width, face.box.height
        thick = max(1, round(min(width, height) / 40))
        image = draw_axes(image, pose, face.box.center, 0.5 * max(width, height), thick)
    return image
