"""Published figures: every entry loads, means are those of the angles, protocols are marked, errors name the entry."""

import dataclasses

import pytest
import yaml

from hpe_core.datasets.protocols import PROTOCOLS, listed, protocol_named
from hpe_core.errors import SpecError
from workflows.engine.results import Role, Row
from workflows.report.published import FILE, ROUNDING, TableRow, beside, published

RESULTS = published()
OURS = [
    Row(test, role, role, "student", {"pitch": 4.0, "yaw": 3.0, "roll": 3.5, "mae": mae}, 1e6, 3.0)
    for test in ("aflw2000", "faces of biwi")
    for role, mae in ((Role.DISTILLED, 3.5), (Role.HARD, 3.9))
]
READERS = {"faces of biwi": "biwi"}


def entry_id(row):
    return f"{row.source}-{row.table}-{row.test}-{row.protocol}-{row.method}"


@pytest.mark.parametrize("row", RESULTS, ids=entry_id)
def test_the_mean_is_that_of_the_angles_or_is_said_to_differ(row):
    printed = (row.pitch, row.yaw, row.roll, row.mae)
    if None in printed:
        assert row.source == "mnn" and printed[:3] == (None, None, None) and not row.printed_mean_differs
        return
    differs = abs((row.pitch + row.yaw + row.roll) / 3 - row.mae) > ROUNDING + 1e-9
    assert differs == row.printed_mean_differs


@pytest.mark.parametrize("row", RESULTS, ids=entry_id)
def test_a_row_agrees_with_the_protocol_it_names(row):
    if row.protocol is None:
        assert row.train is None and row.source in ("ehpnet", "mnn")
        return
    protocol = protocol_named(row.protocol)
    assert row.train == listed(part.reader for part in protocol.train)
    assert row.test in {part.reader for part in protocol.test}
    assert row.protocol.startswith(row.source)


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_a_table_shows_ours_first_and_marks_what_was_measured_otherwise(name):
    lines = beside(OURS, name, READERS)
    protocol = protocol_named(name)
    assert [line.name for line in lines if line.source == "ours"] == ["distilled", "hard"] * 2
    for test, reader in (("aflw2000", "aflw2000"), ("faces of biwi", "biwi")):
        mine = [line for line in lines if line.test == test]
        assert len(mine) == 2 + sum(row.test == reader for row in RESULTS)
        ours = [line.source == "ours" for line in mine]
        assert ours == sorted(ours, reverse=True)
        theirs = [(bool(line.mark), line.mae) for line in mine[2:]]
        assert theirs == sorted(theirs)
        tested = reader in {part.reader for part in protocol.test}
        assert all((not line.mark) == tested for line in mine[:2])
        own = [row for row in RESULTS if (row.protocol, row.test) == (name, reader) and row.boxes is None]
        same = {(row.method, row.mae) for row in own}
        assert {(line.name, line.mae) for line in mine[2:] if not line.mark} == same
    for line in lines:
        assert (line.mark == "") == (not line.mark.startswith("other protocol: "))


def test_the_mark_says_what_differs():
    marks = {(line.name, line.source): line.mark for line in beside(OURS[2:], "offsets-1", READERS) if line.mark}
    assert marks["EHPNet", "ehpnet, table 1"] == "other protocol: train, filter, boxes"
    assert marks["TriNet", "offsets, table 5"] in ("other protocol: boxes", "other protocol: train, boxes, split")
    assert marks["MNN", "mnn, table Results"] == "other protocol: not stated"
    ours, *_ = beside(OURS, "offsets-1", READERS, ["data.crop.size is 64, in offsets-1 it is 224"])
    assert ours.mark == "other protocol: data.crop.size is 64, in offsets-1 it is 224"


def test_a_test_set_that_no_paper_has_shows_ours_alone():
    lines = beside([dataclasses.replace(OURS[0], test="heads")], "rendered-heads", {"heads": "synthetic"})
    assert lines == [TableRow("distilled", "ours", "heads", "", 4.0, 3.0, 3.5, 3.5)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mea": 3.0}, "unknown key .*MNN.mea; did you mean 'mae'?"),
        ({"mae": "low"}, "MNN.mae is 'low'; a number is needed"),
        ({"mae": 200.0}, "MNN: errors lie between 0 and 180 degrees, got .200"),
        ({"mae": None}, "MNN: errors lie between"),
        ({"protocol": "ehpnt"}, "MNN: there is no protocol 'ehpnt'; did you mean 'ehpnet'?"),
        ({"pitch": 4.0, "yaw": 4.0, "roll": 4.0}, "MNN: mae is 3.0, its angles' mean 4.000"),
        ({"source": "mmn"}, "published.yaml, results: mmn Results aflw MNN: its source is not listed"),
    ],
)
def test_an_entry_that_cannot_be_right_is_named(tmp_path, changes, said):
    row = {"source": "mnn", "table": "Results", "test": "aflw", "method": "MNN", "mae": 3.0}
    file = tmp_path / "published.yaml"
    file.write_text(yaml.safe_dump({"sources": {"mnn": ""}, "results": [{"rows": [{**row, **changes}]}]}))
    with pytest.raises(SpecError, match=said) as error:
        published(file)
    assert "published.yaml, results: " in str(error.value)


def test_no_entry_is_there_twice_and_the_file_says_its_sources():
    names = [entry_id(row) for row in RESULTS]
    assert len(set(names)) == len(names)
    text = FILE.read_text(encoding="utf-8")
    header = text[: text.index("sources:")]
    sources = yaml.safe_load(text)["sources"]
    assert text.startswith("#") and all(f"# {name} " in header for name in sources)
    assert set(sources) == {row.source for row in RESULTS}
