"""Landmarks of the networks that answer them (MNN): their errors, and faces with what they say."""

from collections.abc import Iterator

from hpe_core.data.marks import MARKS_FILE, read_marks
from hpe_core.data.rows import read_shard, shard_files
from hpe_core.geometry.crop import window
from workflows.export.faces import evenly
from workflows.report import figures
from workflows.report.material import Material, Section
from workflows.report.page import decimals, line

SCORES = {"nme_box": "% of the box", "nme_eyes": "% of the eyes’ distance", "hidden_recall": "hidden found"}
SHOWN = 8


def landmarks(material: Material) -> Iterator[Section]:
    """Nothing where no network has landmarks."""
    said = read_marks(material.stage.inputs["evaluate"] / MARKS_FILE)
    if not said:
        return
    lines = [
        line(row.test, row.name, *(decimals(row.scores.get(key)) for key in SCORES))
        for row in material.results.evaluate.rows
        if (row.name, row.test) in said
    ]
    size, sheets = material.spec.data.crop.size, []
    for (network, test), points in said.items():
        shard = read_shard(shard_files(material.stage.inputs["shards"], test, "test")[0])
        picked = evenly(len(shard), SHOWN)
        marks = [points[shard.sample_ids[i]] + [size / 2, size / 2, 0] for i in picked]
        sheet = figures.landmark_sheet(window(shard.images[picked], size), marks)
        sheets.append((network, test, material.book.faces(f"landmarks_{network}_{test}", sheet)))
    yield Section("Landmarks", "landmarks", {"columns": list(SCORES.values()), "lines": lines, "sheets": sheets})
