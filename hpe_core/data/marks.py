"""What a network says of the landmarks of a test set: measured, written beside the predictions, read for pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hpe_core.data.rows import read_table, write_table
from hpe_core.geometry.landmarks import LANDMARKS, landmark_errors, recall_at_precision

MARKS_FILE = "landmarks.parquet"


class Marks(NamedTuple):
    """Landmarks of M faces, in crop pixels from the crop's centre, and image pixels a crop pixel."""

    said_ML3: NDArray[np.float32]  # by the network; the third is the probability that the landmark is seen
    true_ML3: NDArray[np.float32]
    scales_M2: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: "Sequence[Marks]") -> "Marks":
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def scores(self, faces: NDArray[np.bool_] | slice = slice(None)) -> dict[str, float]:
        """Of these faces, as far as their landmarks are known: errors in percent of the face's box and of the distance
        of the eyes, and the recall of hidden landmarks at 80 % precision."""
        said, true, scales = self.said_ML3[faces], self.true_ML3[faces], self.scales_M2[faces][:, None]
        pairs = said[..., :2] * scales, true[..., :2] * scales
        errors = {f"nme_{by}": landmark_errors(*pairs, by) for by in ("box", "eyes")}
        found = {name: float(np.nanmean(values)) for name, values in errors.items() if np.isfinite(values).any()}
        hidden = recall_at_precision(1 - said[..., 2], true[..., 2])
        return found | ({} if np.isnan(hidden) else {"hidden_recall": hidden})


def write_marks(path: Path, said: Mapping[tuple[str, str], tuple[Sequence[str], Marks]]) -> None:
    """{(network, test): (sample ids, landmarks)} as rows; no file where there are none."""
    rows = [
        {"network": network, "test": test, "sample_id": name, "points": points.astype(np.float32).tobytes()}
        for (network, test), (ids, marks) in said.items()
        for name, points in zip(ids, marks.said_ML3, strict=True)
    ]
    if rows:
        write_table(path, pa.Table.from_pylist(rows))


def read_marks(path: Path) -> dict[tuple[str, str], dict[str, NDArray[np.float32]]]:
    """{(network, test): {sample id: (68, 3)}}; nothing where there is no file."""
    found: dict[tuple[str, str], dict[str, NDArray[np.float32]]] = {}
    for row in read_table(path).to_pylist() if path.exists() else []:
        points = np.frombuffer(row["points"], np.float32).reshape(LANDMARKS, 3)
        found.setdefault((row["network"], row["test"]), {})[row["sample_id"]] = points
    return found
