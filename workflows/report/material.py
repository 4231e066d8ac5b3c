"""What the sections of a report are made from, and what each hands back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpe_core.data.rows import read_table
from hpe_core.geometry.rotation import ANGLE_NAMES
from hpe_core.spec.pipeline import PipelineSpec
from workflows.engine.exported import Exported
from workflows.engine.results import Results
from workflows.engine.stage import StageRun
from workflows.report.figures import Predicted
from workflows.report.page import Book


@dataclass(frozen=True, eq=False)
class Material:
    stage: StageRun  # publish: its `results` and `inputs` name every finished stage
    exported: Exported  # what was measured of the exported files
    origin: Mapping[str, str]  # names and values: where the model came from
    predictions: Mapping[str, Mapping[str, Predicted]]  # by test set and network
    book: Book  # keeps the pictures

    @property
    def spec(self) -> PipelineSpec:
        return self.stage.spec

    @property
    def results(self) -> Results:
        return self.stage.results


@dataclass(frozen=True)
class Section:
    """A section's heading, and the values of `templates/<template>.html.j2`, which says the rest."""

    heading: str
    template: str
    values: Mapping[str, Any]


def read_predictions(path: Path) -> dict[str, dict[str, Predicted]]:
    """predictions.parquet -> {test: {network: Predicted}}, in the file's order."""
    columns = read_table(path)
    test, network = (np.array(columns[name].to_pylist(), dtype=object) for name in ("test", "network"))
    ids, people = (np.array(columns[name].to_pylist(), dtype=object) for name in ("sample_id", "person"))
    angles = np.stack([columns[name].to_numpy() for name in ANGLE_NAMES], 1).astype(np.float64)
    truth = np.stack([columns[f"true_{name}"].to_numpy() for name in ANGLE_NAMES], 1).astype(np.float64)
    out: dict[str, dict[str, Predicted]] = {}
    for one in dict.fromkeys(test):
        for name in dict.fromkeys(network):
            rows = np.flatnonzero((test == one) & (network == name))
            if len(rows):
                shown = ids[rows].tolist(), people[rows].tolist()
                out.setdefault(one, {})[name] = Predicted(*shown, angles[rows], truth[rows])
    return out
