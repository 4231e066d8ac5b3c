"""One section a test set: the results, how the errors are distributed, and the faces that went worst."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpe_core.data.rows import read_shard, shard_files
from hpe_core.geometry.crop import Image, window
from hpe_core.geometry.rotation import ANGLE_NAMES
from hpe_core.learning.metrics import AUC_DEG, RANGE_NAMES
from workflows.engine.results import Role, Row
from workflows.engine.stage import StageRun
from workflows.report import figures
from workflows.report.figures import SHOWN, Predicted
from workflows.report.material import Material, Section
from workflows.report.page import Book, Entry, Line, Picture, decimals, line

WORST = 8
DETAILS = ("median", "p90", "maev", "geodesic_behind", "auc", "aligned_mae", "aligned_geodesic", "offset_deg")


def test_sets(material: Material) -> Iterator[Section]:
    """Results table, distribution, cost and error by angle, the (K, d) map and the worst faces of each test set."""
    book, evaluated = material.book, material.results.evaluate
    for test, networks in material.predictions.items():
        rows = [row for row in evaluated.rows if row.test == test]
        newcomers = [row for row in evaluated.new_people if row.test == test]
        ahead = {name: network.ahead for name, network in networks.items()}
        shown: dict[str, Predicted] = {name: ahead[name] for name in SHOWN if name in ahead}
        cells, base = evaluated.heatmap.get(test), material.spec.base_teacher
        values = {
            "results": ResultsTable.of(rows),
            "new_people": ResultsTable.of(newcomers) if newcomers else None,
            "new_people_faces": newcomers[0].scores["n"] if newcomers else 0,
            "hidden_on_a_telephone": score_lines(rows, ("geodesic", *yaw_ranges(rows))),
            "details": score_lines(rows, DETAILS),
            "auc_deg": AUC_DEG,
            "cdf": book.chart(f"error_cdf_{test}", figures.error_cdf(test, shown)),
            "costs": book.chart(f"cost_{test}", figures.costs(test, rows)),
            "by_angle": {
                name: book.chart(f"error_by_{name}_{test}", figures.error_by_angle(test, shown, angle))
                for angle, name in enumerate(ANGLE_NAMES)
            },
            "fewest": figures.FEWEST,
            "behind": any("geodesic_behind" in row.scores for row in rows),
            "base": base,
            "heatmap": book.chart(f"heatmap_{test}", figures.heat_map(test, base, cells)) if cells else None,
            "worst": worst_faces(book, material.stage, test, ahead[Role.TEACHERS], ahead[Role.DISTILLED]),
        }
        yield Section(f"Test set {test}", "test_sets", values)


@dataclass(frozen=True)
class ResultsTable:
    """MAE, its three angles, geodesic error, error by range of yaw, parameters, latency; a column's lowest is bold."""

    yaw_ranges: list[str]
    lines: list[Line]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "ResultsTable":
        ranges = yaw_ranges(rows)
        keys = ("mae", *ANGLE_NAMES, "geodesic", *ranges)
        best = {key: min(row.scores[key] for row in rows if key in row.scores) for key in keys}
        lines = []
        for row in rows:
            size, latency = f"{row.parameters / 1e6:.2f} M", f"{row.latency_ms:.1f}"
            scores = [Entry(decimals(row.scores.get(key)), best=row.scores.get(key) == best[key]) for key in keys]
            name = Entry(row.name, below=row.what, phone=f"{size}, {latency} ms")
            lines.append(line(name, *scores, size, latency, ours=row.role is Role.DISTILLED))
        return cls([f"{name.replace('-', '–')}°" for name in ranges], lines)


def yaw_ranges(rows: Sequence[Row]) -> list[str]:
    return [name for name in RANGE_NAMES if any(name in row.scores for row in rows)]


def score_lines(rows: Sequence[Row], keys: Iterable[str]) -> list[Line]:
    return [line(row.name, *(decimals(row.scores.get(key)) for key in keys)) for row in rows]


@dataclass(frozen=True)
class WorstFace:
    """A face with the axes of its label, of the teachers and of the student, their angles, and how far they are off."""

    picture: Picture
    label: str
    teachers: str
    teachers_off: float
    student: str
    student_off: float


def worst_faces(book: Book, stage: StageRun, test: str, teachers: Predicted, student: Predicted) -> list[WorstFace]:
    """The faces with the student's largest mean error, the worst first."""
    assert student.sample_ids == teachers.sample_ids, "predictions of one test set share their order"
    order = np.argsort(-student.errors, kind="stable")[:WORST]
    crops = windows_of(stage, test, {student.sample_ids[i] for i in order})
    found = []
    for place, i in enumerate(order, start=1):
        poses = (student.truth[i], teachers.angles[i], student.angles[i])
        picture = book.faces(f"worst_{test}_{place}", figures.with_axes(crops[student.sample_ids[i]], poses))
        label, taught, said = map(figures.angles_text, poses)
        found.append(WorstFace(picture, label, taught, teachers.errors[i], said, student.errors[i]))
    return found


def windows_of(stage: StageRun, test: str, wanted: set[str]) -> Mapping[str, Image]:
    """Sample id -> window of the wanted faces, with one shard in memory at a time."""
    found: dict[str, Image] = {}
    for file in shard_files(stage.inputs["shards"], test, "test"):
        shard = read_shard(file)
        for index, sample_id in enumerate(shard.sample_ids):
            if sample_id in wanted:
                found[sample_id] = window(shard.images[index], stage.spec.data.crop.size).copy()
    return found
