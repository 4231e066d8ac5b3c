"""Counts of every split, and what the quarantined look like."""

from collections.abc import Iterator, Mapping

import cv2
import numpy as np

from hpe_core.data.rows import read_table
from hpe_core.geometry.crop import Image
from workflows.report.material import Material, Section
from workflows.report.page import line
from workflows.sharding.accounts import QUARANTINE, Broken
from workflows.sharding.quarantine import SHEET, TABLE, chosen

SHOWN_BROKEN = 24
LETTERS = 160  # of a path or a message


def accounts(material: Material) -> Iterator[Section]:
    folder = material.stage.inputs["shards"]
    broken = [Broken(**row) for row in read_table(folder / QUARANTINE).to_pylist()]
    values = {
        "splits": [
            line(
                name,
                f"{split.input:,}",
                f"{split.kept:,}",
                f"{sum(split.filtered.values()):,}",
                f"{sum(split.quarantined.values()):,}",
                reasons(split.quarantined),
            )
            for name, split in material.results.shards.splits.items()
        ],
        "table": TABLE,
        "broken": len(broken),
        "shown": [
            line(face.reason, f"{face.dataset}.{face.split}", shortened(face.path), shortened(face.detail))
            for face in chosen(broken, SHOWN_BROKEN)
        ],
        "sheet": None,
    }
    if (folder / SHEET).exists():
        sheet: Image = np.asarray(cv2.imread(str(folder / SHEET)), np.uint8)
        values["sheet"] = material.book.faces("quarantine", cv2.cvtColor(sheet, cv2.COLOR_BGR2RGB))
    yield Section("What became of every face", "accounts", values)


def reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "–"


def shortened(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"
