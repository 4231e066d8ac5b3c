"""Every number of a report's table stands below the word that names it; every chart shows the numbers it is of."""

import dataclasses
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hpe_core.data.rows import read_shard
from hpe_core.geometry.crop import window
from hpe_core.geometry.rotation import ANGLE_NAMES
from hpe_core.learning.metrics import PoseSums
from tests.report.fakes import CROP, EXPORTED, NETS, TESTS, finished_run
from tests.report.test_build import material, predictions_of
from workflows.engine.results import Cell, NetworkResult, Results, Role, StudentResult
from workflows.engine.stage import StageRun
from workflows.report import figures
from workflows.report.build import rendered
from workflows.report.figures import Predicted, angles_text
from workflows.report.headline import headline
from workflows.report.material import Section, read_predictions
from workflows.report.published import TableRow
from workflows.report.sections import samples as sections_samples
from workflows.report.sections.landmarks import landmarks
from workflows.report.sections.latency import latency
from workflows.report.sections.papers import paper_line
from workflows.report.sections.samples import samples
from workflows.report.sections.soft_labels import soft_labels
from workflows.report.sections.sureness import sureness
from workflows.report.sections.test_sets import test_sets as scored_sets
from workflows.report.sections.training import training
from workflows.report.text import print_table


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return finished_run(tmp_path_factory.mktemp("store"))[0]


def plain(cell: str) -> str:
    return unescape(re.sub(r"<small.*?</small>|<[^>]*>", "", cell)).strip()


def tables(page: str) -> list[list[dict[str, str]]]:
    """The rows of each table, by the words of its head."""
    found = []
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        head, *rows = [
            [plain(cell) for cell in re.findall(r"<t[hd]\b.*?</t[hd]>", row, re.DOTALL)]
            for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        ]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def scored(stage: StageRun) -> tuple[Any, list[Section]]:
    made = dataclasses.replace(material(stage), predictions=read_predictions(predictions_of(stage)))
    return made, [*scored_sets(made)]


def test_what_a_training_came_to_is_below_its_words(stage):
    history = ({"epoch": 1, "train/loss": 1.0, "val/mae": 7.25}, {"epoch": 2, "train/loss": 0.5, "val/mae": 8.5})
    student = StudentResult(NetworkResult(7.25, 1, 2, 33.0, history), NetworkResult(6.5, 2, 2, 44.0, history), None)
    (section,) = training(material(stage, student=student))
    rows = {row["network"]: row for row in tables(rendered(section))[0]}
    assert set(rows) == {"base", "second", Role.HARD, Role.DISTILLED}
    own = {"network": "distilled", "val. error": "7.25", "best epoch": "1", "epochs": "2", "time": "33 s"}
    assert rows[Role.DISTILLED] == own and rows[Role.HARD]["val. error"] == "6.50"


def test_labels_that_were_moved_and_those_that_were_not_are_told_apart(stage):
    (section,) = soft_labels(material(stage))
    sets, moved = tables(rendered(section))
    assert sets == [{"label set": "base-K0-d1", "MAE": "5.00"}]
    own = {"motion": "turn, yaw below 60", "moved": "1.25", "unmoved": "2.50", "KL, nats": "0.125", "faces": "14"}
    assert moved == [own]


def test_intervals_that_were_made_to_hold_are_told_apart_from_raw_ones(stage):
    (section,) = sureness(material(stage))
    ((row,),) = tables(rendered(section))
    (said,) = stage.results.evaluate.sureness.intervals
    names = ("pitch", "yaw", "roll")
    assert (row["test set"], row["interval"]) == (said.test, "80 %")
    assert [row[name] for name in names] == [f"{100 * share:.1f}" for share in said.calibrated]
    assert [row[f"raw {name}"] for name in names] == [f"{100 * share:.1f}" for share in said.raw]


def test_every_runtime_has_its_own_milliseconds_and_the_headline_those_of_one_face(stage):
    times = {"PyTorch, eager": {"batch 1": 1.25, "batch 32": 20.5}, "ONNX Runtime": {"batch 1": 0.75, "batch 32": 9.5}}
    exported = dataclasses.replace(EXPORTED, latency_ms=times)
    made = dataclasses.replace(scored(stage)[0], exported=exported)
    (section,) = latency(made)
    for row in tables(rendered(section))[0]:
        assert {name: row[f"{name}, ms"] for name in times[row["runtime"]]} == {
            name: f"{ms:.2f}" for name, ms in times[row["runtime"]].items()
        }
    assert headline(made).values["latency_ms"] == 0.75
    assert "0.75 ms a face" in " ".join(rendered(headline(made)).split())


def test_figures_beside_the_papers_are_below_their_words():
    page = Section("", "papers", {"tables": {"t": [paper_line(TableRow("a", "s", "t", "m", 1.0, 2.0, 3.0, 4.0))]}})
    values = {
        **page.values,
        "protocol": dataclasses.make_dataclass("Asked", ["name", "hash", "deviations"])("n", "h", ()),
    }
    ((row,),) = tables(rendered(dataclasses.replace(page, values={**values, "boxes": {}})))
    own = {"network": "a", "MAE": "4.00", "pitch": "1.00", "yaw": "2.00", "roll": "3.00", "source": "s"}
    assert row == own | {"compare with care": "m"}


DETAILS = {"median": "median", "p90": "p90", "MAEV": "maev", "aligned MAE": "aligned_mae", "offset": "offset_deg"}
DETAILS |= {"AUC 20°": "auc", "aligned geodesic": "aligned_geodesic"}
RESULTS = {"MAE": "mae", "pitch": "pitch", "yaw": "yaw", "roll": "roll", "geodesic": "geodesic"}


def test_every_score_of_a_test_set_is_below_its_words(stage):
    _, sections = scored(stage)
    for test, section in zip(TESTS, sections, strict=True):
        results, telephone, details, *_ = tables(rendered(section))
        for found, keys in ((results, RESULTS), (details, DETAILS), (telephone, {"geodesic": "geodesic"})):
            assert [row["network"] for row in found] == [*NETS]
            for row in found:
                scores = next(
                    one.scores for one in stage.results.evaluate.rows if (one.test, one.name) == (test, row["network"])
                )
                assert {name: row[name] for name in keys} == {name: f"{scores[key]:.2f}" for name, key in keys.items()}


def test_a_worst_face_says_who_said_what_and_shows_it(stage, monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "with_axes", lambda face, poses: shown.append((face, poses)) or face)
    made, sections = scored(stage)
    for test, section in zip(TESTS, sections, strict=True):
        networks = made.predictions[test]
        student, teachers = networks[Role.DISTILLED], networks[Role.TEACHERS]
        (file,) = (stage.inputs["shards"] / f"{test}.test").glob("*.parquet")
        shard = read_shard(file)
        for said in section.values["worst"]:
            face, poses = shown.pop(0)
            i = int(np.argmin(np.abs(student.errors - said.student_off)))
            whole = [student.truth[i], teachers.angles[i], student.angles[i]]
            np.testing.assert_array_equal(poses, whole)
            assert [said.label, said.teachers, said.student] == [*map(angles_text, whole)]
            assert said.teachers_off == pytest.approx(np.abs(teachers.angles[i] - student.truth[i]).mean(), abs=1e-3)
            row = shard.sample_ids.index(student.sample_ids[i])
            np.testing.assert_array_equal(face, window(shard.images[row], CROP.size))
    assert not shown


def test_heads_from_behind_are_in_no_chart_and_among_no_worst_faces(stage, monkeypatch):
    """Their Euler angles are compared nowhere: a network that is right about them may seem to be far off."""
    before = read_predictions(predictions_of(stage))[TESTS[0]]
    truth = next(iter(before.values())).truth.copy()
    truth[:3, 1] = 150
    turned = {
        name: Predicted(one.sample_ids, one.people, np.where(truth == 150, -60.0, one.angles), truth)
        for name, one in before.items()
    }
    drawn: list[dict[str, Predicted]] = []
    monkeypatch.setattr(figures, "error_cdf", lambda test, networks: drawn.append(networks))
    monkeypatch.setattr(figures, "error_by_angle", lambda test, networks, angle: drawn.append(networks))
    made = dataclasses.replace(material(stage), predictions={TESTS[0]: turned})
    (section,) = scored_sets(made)
    assert max(face.student_off for face in section.values["worst"]) < 40 < turned[Role.DISTILLED].errors[:3].min()
    assert len(drawn) == 4 and all(len(one.errors) == len(truth) - 3 for each in drawn for one in each.values())
    for name, one in drawn[0].items():
        assert one.errors.mean() == pytest.approx(PoseSums.of(turned[name].angles, truth).summary()["mae"])
    behind = [
        dataclasses.replace(row, scores=row.scores | {"geodesic_behind": 9.0}) for row in stage.results.evaluate.rows
    ]
    evaluated = dataclasses.replace(stage.results.evaluate, rows=tuple(behind))
    known = Results({**stage.results.found, "evaluate": evaluated})
    (told,) = scored_sets(dataclasses.replace(made, stage=dataclasses.replace(stage, results=known)))
    said = "heads from behind are left out"
    assert said in rendered(told) and said not in rendered(section)


def test_sheets_show_faces_with_their_own_labels_and_landmarks(stage, monkeypatch):
    monkeypatch.setattr(sections_samples, "SAMPLES", 5)  # fewer than there are
    sheets, marked = [], []
    monkeypatch.setattr(figures, "sample_sheet", lambda *words: sheets.append(words) or words[0][0])
    monkeypatch.setattr(figures, "landmark_sheet", lambda *words: marked.append(words) or words[0][0])
    [*samples(material(stage)), *landmarks(material(stage))]
    for windows, poses in sheets:
        of_face = {}
        for file in Path(stage.inputs["shards"]).glob("*/part-*.parquet"):
            shard = read_shard(file)
            cut = window(shard.images, CROP.size)
            of_face |= {face.tobytes(): pose for face, pose in zip(cut, shard.angles, strict=True)}
        np.testing.assert_array_equal(poses, [of_face[face.tobytes()] for face in windows])
        assert len(poses) == 5
    ((faces, marks),) = marked
    assert len(faces) == len(marks) and len(sheets) == 2
    for points in marks:  # said from the window's middle, drawn from its corner
        np.testing.assert_allclose(points[:, :2], np.tile([5 + CROP.size / 2, -3 + CROP.size / 2], (68, 1)))


def test_charts_are_drawn_of_the_numbers_that_they_name():
    """Means by scipy, the best cell framed, the kept epoch dotted."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(-60, 60, (400, 3))
    names = [str(i) for i in range(len(truth))]
    one = Predicted(names, names, truth + rng.normal(0, 5, truth.shape), truth)
    for angle in range(3):
        line, *_ = figures.error_by_angle("t", {Role.DISTILLED: one}, angle).axes[0].lines
        edges = np.append(np.asarray(line.get_xdata()) - 7.5, line.get_xdata()[-1] + 7.5)
        means = stats.binned_statistic(truth[:, angle], one.errors, "mean", edges).statistic
        counts = stats.binned_statistic(truth[:, angle], one.errors, "count", edges).statistic
        np.testing.assert_allclose(line.get_ydata(), np.where(counts >= figures.FEWEST, means, np.nan))
    (line,) = figures.error_cdf("t", {Role.DISTILLED: one}).axes[0].lines
    ecdf = stats.ecdf(one.errors).cdf
    np.testing.assert_allclose(line.get_ydata()[1:], 100 * ecdf.evaluate(np.asarray(line.get_xdata()[1:])))
    cells = [Cell(k, d, 5.0 + (k - 2) ** 2 + 0.1 * d) for k in range(5) for d in (1, 2)]
    axes = figures.heat_map("t", "base", cells).axes[0]
    (frame,), shown = axes.lines, np.asarray(axes.images[0].get_array())
    assert (list(frame.get_xdata()), list(frame.get_ydata())) == ([0], [2]), "d=1, K=2 is the best"
    assert [shown[cell.K, cell.d - 1] for cell in cells if cell.d <= cell.K] == [c.mae for c in cells if c.d <= c.K]
    history = tuple({"epoch": epoch, "val/mae": mae} for epoch, mae in ((1, 9.0), (2, 4.0), (3, 6.0)))
    curve, dot = figures.training_curves({Role.HARD: history}, "val/mae", "t", "y").axes[0].lines
    assert list(curve.get_ydata()) == [9, 4, 6] and (list(dot.get_xdata()), list(dot.get_ydata())) == ([2], [4])


def test_the_console_has_every_row_below_its_test_set_and_the_words_of_its_numbers(stage):
    rows = [dataclasses.replace(row, parameters=1_250_000, latency_ms=3.5) for row in stage.results.evaluate.rows]
    blocks = [block.splitlines() for block in print_table(rows).strip().split("\n\n")]
    assert [title for title, *_ in blocks] == [f"test set {test}, 14 faces" for test in TESTS]
    for test, (_, head, *lines) in zip(TESTS, blocks, strict=True):
        assert head.split() == ["network", *ANGLE_NAMES, "MAE", "geod.", "params", "CPU", "ms", "what"]
        for row, said in zip([row for row in rows if row.test == test], lines, strict=True):
            degrees = [f"{row.scores[key]:.2f}" for key in (*ANGLE_NAMES, "mae", "geodesic")]
            assert said.removeprefix(row.name).split() == [*degrees, "1.25M", "3.5", "what", "it", "is"]
