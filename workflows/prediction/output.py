"""What `predict` leaves: a row a face, as a table or as JSON lines, and the picture with the faces' axes."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hpe_core.datasets.files import printable
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Image
from hpe_core.geometry.draw import draw_axes
from hpe_core.geometry.rotation import ANGLE_NAMES
from workflows.engine.config import tell
from workflows.prediction.faces import Face
from workflows.prediction.frames import Frame

TABLE = "poses.csv"
DECIMALS = {"x1": 2, "y1": 2, "x2": 2, "y2": 2}  # of pixels; angles and scores have 4
SPREADS = [f"{name}_spread" for name in ANGLE_NAMES]
TRACK = "track"  # a person's number in a video; pictures have none
COLUMNS = ["file", "frame", "seconds", "face", TRACK, "x1", "y1", "x2", "y2", "score", *ANGLE_NAMES, *SPREADS]
Row = dict[str, Any]
Angles = NDArray[Any]  # degrees


def row_of(frame: Frame, number: int, face: Face, track: int | None, angles: Angles, spread: Angles) -> Row:
    """One face as COLUMNS name it: pixels of the file, degrees, and the standard deviation of each predicted
    distribution."""
    box = frame.in_file(face.box)
    seen = (printable(frame.name), frame.number, frame.seconds, number, track)
    values = [*seen, box.x1, box.y1, box.x2, box.y2, face.score, *map(float, angles), *map(float, spread)]
    row = dict(zip(COLUMNS, values, strict=True))
    if track is None:
        del row[TRACK]
    return {name: round(v, DECIMALS.get(name, 4)) if isinstance(v, float) else v for name, v in row.items()}


@contextmanager
def csv_table(out: Path, tracks: bool) -> Iterator[Callable[[Row], None]]:
    """Writes rows into the table, each at once: what was seen outlives an interruption."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        stream = open(out / TABLE, "w", newline="", encoding="utf-8", buffering=1)  # noqa: SIM115  # closed below
    except OSError as error:
        raise SpecError(f"{out / TABLE} cannot be written: {error.strerror}") from None
    with stream:
        writer = csv.DictWriter(stream, [name for name in COLUMNS if tracks or name != TRACK])
        writer.writeheader()
        yield writer.writerow


def print_row(row: Row) -> None:
    tell(json.dumps(row))


def drawn(image: Image, faces: Sequence[Face], angles: Angles) -> Image:
    """The picture with each face's axes: as long as half the box's longer side, thick by its shorter one."""
    for face, pose in zip(faces, angles, strict=True):
        width, height = face.box.width, face.box.height
        thick = max(1, round(min(width, height) / 40))
        image = draw_axes(image, pose, face.box.center, 0.5 * max(width, height), thick)
    return image
