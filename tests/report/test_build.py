"""Laws of the report: it stands alone, shows every figure, and says what the results say."""

import base64
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError

from hpe_core.datasets.protocols import matches, protocol_named
from hpe_core.learning.metrics import PoseSums
from hpe_core.spec.data import DatasetSpec
from tests.report.fakes import EXPORTED, NETS, TESTS, finished_run
from workflows.engine.results import Finalist, Results, Role, Trial, UnderProtocol
from workflows.engine.stage import StageRun
from workflows.report.build import SECTIONS, build_report, rendered, whole_page
from workflows.report.figures import Predicted
from workflows.report.headline import headline, paired_gain
from workflows.report.material import Material, Section, read_predictions
from workflows.report.page import TEMPLATES, Book, Entry, Line, Picture, environment, file_name, line, render
from workflows.report.sections.accounts import accounts
from workflows.report.sections.papers import papers
from workflows.report.sections.samples import samples
from workflows.report.sections.search import SHOWN_TRIALS, search
from workflows.report.sections.soft_labels import soft_labels
from workflows.report.sections.test_sets import WORST, ResultsTable
from workflows.report.sections.test_sets import test_sets as scored_sets


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return finished_run(tmp_path_factory.mktemp("store"))[0]


@pytest.fixture(scope="module")
def report(stage: StageRun) -> Path:
    return build_report(stage, EXPORTED, {"configuration": stage.spec.name}, stage.folder / "report")


class Undrawn(Book):
    """Charts take seconds to become pixels, which these laws do not look at."""

    def chart(self, name: str, figure: Any) -> Picture:
        return Picture("chart", name)


def material(stage: StageRun, **results: Any) -> Material:
    """What sections are made from, with other results of some stages."""
    known = Results({**stage.results.found, **results})
    return Material(dataclasses.replace(stage, results=known), EXPORTED, {}, {}, Undrawn(stage.folder))


def test_the_report_stands_alone_and_shows_every_figure(report):
    page = report.read_text()
    pictures = sorted(report.parent.glob("*.png"))
    assert len(pictures) == page.count("<img ") == (6 + WORST) * len(TESTS) + 2 + 2 + 1 + 1 + 1 + 1
    for picture in pictures:
        assert base64.b64encode(picture.read_bytes()).decode() in page, picture.name
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert re.findall(r"""(?:src|href)=(?!["']?(?:data:|#s))|url\(|@import|<script|<link""", text) == []
    assert [address for address in re.findall(r"https?://\S+", text) if "mlflow.example" not in address] == []
    assert "secret" not in text


def test_the_report_names_what_it_shows(stage, report):
    page = report.read_text()
    names = ["heads", "other &lt;set&gt;", "fake &amp; small", "truncated_picture", "0.00123", "hash-of-search"]
    names += ["1,234 validation faces", "80.2", "70.3", "1.25, 1.50, 0.75"]  # spreads, held and raw
    names += ["% of the box", "4.12", "0.62"]  # landmarks of the network that answers them
    names += ["a&lt;b&gt;.jpg", "0123456789ab", "7 faces of people who were not trained on"]
    names += ["heads 0, other &lt;set&gt; 1, base 0, second 0, student 0"]
    names += [
        f'>{cpu}.000</td><td data-name="GPU hours">{gpu}.000</td>' for cpu, gpu in ((6, 1), (36, 6))
    ]  # and of all
    for name in names:
        assert name in page, name
    for row in stage.results.evaluate.rows:
        assert f"{row.mae:.2f}" in page
    assert "<set>" not in page and "a<b>" not in page and "x" * 200 not in page
    assert (stage.folder / "report" / f"{file_name('worst_other <set>_1')}.png").is_file()


def test_pictures_of_two_names_are_two_files(tmp_path):
    book, names = Book(tmp_path), ["heads_a b", "heads_a-b", "heads_日", "heads_本"]
    for shade, name in enumerate(names):
        book.faces(name, np.full((2, 2, 3), shade, np.uint8))
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == len(names)
    assert {"heads_a-b.png", "heads_日.png", "heads_本.png"} < {file.name for file in tmp_path.iterdir()}


def table(head: list[str], lines: list[Line], **how: Any) -> str:
    module: Any = environment().get_template("parts.html.j2").module
    return str(module.table(head, lines, **how))


def test_every_cell_of_a_wide_table_names_its_column():
    """On a telephone the head is not shown."""
    row = line(Entry("a", below="b"), "1", "–", "x", ours=True)
    page = table(["name", "n < 2", "m", "said"], [row], words=["said"])
    assert '<tr class="ours">' in page and '<th scope=row data-name="name">a<small>b</small>' in page
    assert '<td data-name="n &lt; 2">1<' in page
    assert '<td class=text data-name="said">x<' in page and "<th scope=col class=text>said<" in page
    assert "data-name" not in table(["name", "n"], [line("a", "1")])
    assert "<table" in table(["name", "n", "m", "said"], [])


def test_a_table_that_is_cut_off_keeps_its_numbers_below_each_other():
    """Five columns are left on a telephone; none becomes a card."""
    page = table(["name", *"abcdefg"], [line("a", *["9.99"] * 7)], cut_off=True)
    assert 'class="first"' in page and "data-name" not in page and page.count("9.99") == 7
    assert ".first tr > :nth-child(n + 6) { display: none }" in (TEMPLATES / "report.css").read_text()


def test_links_lead_to_the_sections():
    opening, empty = Section("", "samples", {"owned": {}, "sheets": []}), {"owned": {}, "sheets": []}
    page = whole_page("t", opening, [Section("A & b", "samples", empty), Section("C", "samples", empty)])
    targets = re.findall(r'<a href="#(\w+)">(.*?)</a>', page)
    assert [name for _, name in targets] == ["A &amp; b", "C"]
    for target, name in targets:
        assert f'<section id="{target}"><h2>{name}</h2>' in page


def test_the_papers_stand_beside_ours_with_a_mark_where_protocols_differ(stage):
    assert not [*papers(material(stage))], "no protocol was asked for"
    protocol, data = protocol_named("offsets-1"), stage.spec.data
    photos = DatasetSpec("aflw2000", root="/photos")
    data = dataclasses.replace(data, datasets={**data.datasets, "photos": photos}, test=("photos",))
    row = dataclasses.replace(stage.results.evaluate.row(Role.DISTILLED), test="photos")
    asked = UnderProtocol(protocol.name, protocol.hash, tuple(matches(protocol, data)))
    changes = {"rows": (row,), "boxes": {"photos": "yunet 0123"}, "protocol": asked}
    evaluated = dataclasses.replace(stage.results.evaluate, **changes)
    other = dataclasses.replace(stage, spec=dataclasses.replace(stage.spec, data=data))
    (section,) = papers(material(other, evaluate=evaluated))
    page = " ".join(rendered(section).split())
    assert "Boxes: photos by yunet 0123." in page
    assert protocol.hash in page and "data.crop.size is 32, in offsets-1 it is 224" in page
    ours, *theirs = re.findall(r"<tr.*?</tr>", page, re.DOTALL)[1:]
    assert f"{row.mae:.2f}" in ours and "other protocol" in ours
    same = [row for row in theirs if "other protocol" not in row]
    assert same and all("offsets, table" in row for row in same) and len(same) < len(theirs)


def test_the_paired_gain_is_the_difference_of_the_table(stage):
    predictions = read_predictions(predictions_of(stage))
    for test in TESTS:
        hard, distilled = (stage.results.evaluate.row(role, test) for role in (Role.HARD, Role.DISTILLED))
        gain, margin = paired_gain(predictions[test][Role.DISTILLED], predictions[test][Role.HARD])
        assert gain == pytest.approx(hard.mae - distilled.mae, abs=1e-4) and margin > 0


def test_heads_from_behind_have_no_say_in_the_paired_gain():
    """As in the table's MAE: their Euler angles are compared nowhere."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(-40, 40, (9, 3))
    truth[:3, 1] = 150
    off = np.where(np.arange(9) < 3, 40.0, -2.0)[:, None]
    student = truth + rng.normal(0, 3, truth.shape)
    names = [str(i) for i in range(9)]
    networks = [Predicted(names, names, angles, truth) for angles in (student, student + off)]
    tables = [PoseSums.of(each.angles, truth).summary()["mae"] for each in networks]
    gain, margin = paired_gain(*networks)
    assert gain == pytest.approx(tables[1] - tables[0])
    pairs = [dataclasses.replace(each, people=[*"xyzaabbcc"]) for each in networks]
    assert paired_gain(*pairs) != (gain, margin), "people count, and not faces"
    alone = [dataclasses.replace(each, people=[*"xyzaaaaaa"]) for each in networks]
    assert paired_gain(*alone) == (gain, None), "who is in front is one person"


def test_the_headline_says_what_the_interval_allows(stage):
    opening = headline(dataclasses.replace(material(stage), predictions=read_predictions(predictions_of(stage))))
    gain = opening.values["gains"][0]

    def said(mean: float, margin: float | None) -> str:
        changed = dataclasses.replace(gain, mean=mean, margin=margin)
        return " ".join(render("headline.html.j2", **{**opening.values, "gains": [changed]}).split())

    assert "helped: the student’s error is 0.50° lower" in said(0.5, 0.4) and "did not help" not in said(0.5, 0.4)
    assert "Distillation did not help: the student’s error is 0.50° higher" in said(-0.5, 0.4)
    for unclear in (said(0.5, 0.6), said(-0.5, 0.6), said(0.5, None)):
        assert "made no difference" in unclear
    assert "-0.10 to +1.10°" in said(0.5, 0.6) and "one person: no interval; one seed" in said(0.5, None)


def test_the_search_says_what_it_hides_and_whom_the_student_beat(stage):
    found = (
        (f"t{i}", {"optim.lr": 0.001 * i}, False, 7 + i / 10, 3, 2.0, 4e5, 3.0 + i) for i in range(SHOWN_TRIALS + 3)
    )
    trials = tuple(Trial(*each) for each in found)
    student = stage.results.student
    rivals = (
        Finalist("a", {"optim.lr": 0.00123456}, dataclasses.replace(student.student, val_error=6.25)),
        Finalist("b", trials[1].changes, dataclasses.replace(student.student, val_error=6.125)),  # the student
    )
    found = dataclasses.replace(stage.results.search, trials=trials, failed=2)
    (section,) = search(material(stage, search=found, student=dataclasses.replace(student, finalists=rivals)))
    page = " ".join(rendered(section).split())
    assert page.count("<tr") == 1 + SHOWN_TRIALS and page.count('<tr class="ours">') == 1
    assert "23 trials finished, 2 failed; 3 more not shown." in page
    assert "is the student: lr 0.00123: 6.25; lr 0.001: 6.12." in page
    assert re.search('<tr class="ours"> <th scope=row[^>]*>2<', page), "the second trial, which validation chose"
    nothing = dataclasses.replace(found, trials=(), failed=0)
    (section,) = search(material(stage, search=nothing))
    assert "None: the student was trained as configured." in rendered(section) and "<table" not in rendered(section)


def test_the_lowest_of_a_column_is_bold_and_every_row_of_the_test_set_is_there(stage):
    rows = [row for row in stage.results.evaluate.rows if row.test == TESTS[0]]
    found = ResultsTable.of(rows)
    assert [entry.entries[0].text for entry in found.lines] == [row.name for row in rows]
    assert [entry.ours for entry in found.lines] == [row.role is Role.DISTILLED for row in rows]
    keys = ("mae", "pitch", "yaw", "roll", "geodesic")
    for column, key in enumerate(keys, start=1):
        bold = [entry.entries[column].best for entry in found.lines]
        lowest = min(row.scores[key] for row in rows)
        assert bold == [row.scores[key] == lowest for row in rows] and sum(bold) == 1
    assert not any(entry.best for entries in found.lines for entry in entries.entries[-2:]), "costs are no contest"


def test_a_test_set_shows_its_own_rows_and_its_worst_faces_first(stage):
    predictions = read_predictions(predictions_of(stage))
    made = dataclasses.replace(material(stage), predictions=predictions)
    for test, section in zip(TESTS, scored_sets(made), strict=True):
        assert section.heading == f"Test set {test}"
        assert len(section.values["results"].lines) == len(section.values["details"]) == len(NETS)
        errors = predictions[test][Role.DISTILLED].errors
        off = [face.student_off for face in section.values["worst"]]
        assert off == sorted(errors, reverse=True)[:WORST]


def test_every_face_of_a_split_is_accounted_for(stage):
    (section,) = accounts(material(stage))
    _, *counts = section.values["splits"][0].entries
    assert [entry.text for entry in counts] == ["17", "14", "2", "1", "1 truncated_picture"]


def test_pictures_of_people_have_owners_and_rendered_ones_none(stage):
    data = stage.spec.data
    photos = {TESTS[1]: DatasetSpec("aflw2000", root="/photos")}
    mixed = dataclasses.replace(stage.spec, data=dataclasses.replace(data, datasets={**data.datasets, **photos}))
    (section,) = samples(material(dataclasses.replace(stage, spec=mixed)))
    assert section.values["owned"] == {TESTS[1]: "research only"}
    assert [(name, split) for name, split, _ in section.values["sheets"]] == [(TESTS[0], "train"), (TESTS[1], "test")]


def test_moved_labels_are_shown_where_there_are_some(stage):
    (section,) = soft_labels(material(stage))
    assert "turn, yaw below 60" in rendered(section) and "base-K0-d1" in rendered(section)
    still = dataclasses.replace(stage.results.evaluate, drift={})
    online = dataclasses.replace(stage.results.labels, train_mae={})
    (section,) = soft_labels(material(stage, evaluate=still, labels=online))
    assert "<table" not in rendered(section) and "None are stored: labels are online." in rendered(section)


def test_a_section_is_a_function_and_the_template_of_its_name():
    for make in SECTIONS:
        assert (TEMPLATES / f"{make.__name__}.html.j2").is_file()
        assert make.__module__ == f"workflows.report.sections.{make.__name__}"


def test_a_value_that_a_template_names_and_nobody_gave_is_an_error():
    with pytest.raises(UndefinedError, match="'sheets' is undefined"):
        render("samples.html.j2", owned={})


def predictions_of(stage: StageRun) -> Path:
    return stage.inputs["evaluate"] / "predictions.parquet"
