"""The exported network behind MLflow's pyfunc: a table of encoded pictures or of paths -> a table of degrees.

A published folder carries this library in `code/`, so the loader runs where the project is not installed; it needs
onnxruntime and no torch. Nothing here imports mlflow or pandas: the table that comes in is the one that goes out.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from hpe_core.datasets.base import Rejected
from hpe_core.datasets.decoding.pictures import decode_picture, read_picture
from hpe_core.errors import SpecError, check
from hpe_core.geometry.crop import Box, Image
from hpe_core.geometry.rotation import ANGLE_NAMES
from hpe_core.predictor import HeadPosePredictor

PICTURE, PATH, CORNERS = "image", "path", ("x1", "y1", "x2", "y2")
ONNX_FILE = "student.onnx"  # beside MLmodel
COLUMNS = (*ANGLE_NAMES, *(f"{name}_spread" for name in ANGLE_NAMES))


class TablePredictor:
    """Rows with a picture each -> rows of angles and standard deviations, degrees."""

    def __init__(self, onnx_file: Path) -> None:
        self._predictor = HeadPosePredictor.load(onnx_file)

    def predict(self, table: Any, params: Any = None) -> Any:
        """A pandas DataFrame with `image` (an encoded picture's bytes) or `path` in every row -> one of `COLUMNS` with
        the same index.

        `x1`, `y1`, `x2`, `y2` are the face box in pixels; without them the whole picture is taken for it. A path is
        read where this runs, so a server that strangers reach should be sent bytes. `params` is MLflow's, and unused.
        Raises SpecError that names the row.
        """
        # MLflow drops columns that the signature does not name, and with them, if no other is left, every row.
        check(PICTURE in table or PATH in table, f"the table has neither a column '{PICTURE}' nor '{PATH}'")
        degrees = np.empty((len(table), len(COLUMNS)))
        for row, values in enumerate(table.to_dict("records")):
            try:
                picture = picture_of(values)
                poses = self._predictor.predict(picture, [box_of(values, picture)])
            except Rejected as rejected:
                raise SpecError(f"row {row}: {rejected.detail}") from None
            except ValueError as error:
                raise SpecError(f"row {row}: {error}") from None
            degrees[row] = np.concatenate([poses.angles[0], poses.spread[0]])
        return table[[]].assign(**{name: degrees[:, i] for i, name in enumerate(COLUMNS)})


def picture_of(values: dict[str, Any]) -> Image:
    """The one picture of a row. Raises SpecError or Rejected."""
    data, path = values.get(PICTURE), values.get(PATH)
    encoded = bytes(data) if isinstance(data, bytes | bytearray) else None  # an empty cell may be None or NaN
    named = path if isinstance(path, str) else None
    check((encoded is None) != (named is None), f"either '{PICTURE}' (bytes) or '{PATH}' (a string) is needed")
    return decode_picture(encoded, "the picture") if encoded is not None else read_picture(Path(str(named)))


def box_of(values: dict[str, Any], picture: Image) -> Box:
    """The row's box, or the whole picture where no corner is given. Raises SpecError for a part of a box."""
    corners = [math.nan if values.get(name) is None else float(values[name]) for name in CORNERS]
    missing = sum(map(math.isnan, corners))
    check(missing in (0, 4), f"a box needs all of {', '.join(CORNERS)}, or none for the whole picture")
    height, width = picture.shape[:2]
    return Box(0.0, 0.0, float(width), float(height)) if missing else Box(*corners)


def _load_pyfunc(path: str) -> TablePredictor:
    """What MLflow calls with the folder of the model."""
    return TablePredictor(Path(path) / ONNX_FILE)
