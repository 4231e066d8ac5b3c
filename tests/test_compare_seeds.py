"""The comparison over seeds: what a seed and a variant change, and the table that goes into a page."""

import dataclasses

import pytest

from hpe_core.errors import SpecError
from workflows import compare_seeds
from workflows.compare_seeds import KINDS, compare, into_readme, main, markdown, variant, with_seed
from workflows.engine.config import load


def test_variants_differ_in_their_soft_labels_only_and_share_the_labels_stage():
    spec = load(["demo"])
    made = {kind: variant(spec, kind) for kind in KINDS}
    assert made["online"].label_sets() == () and made["online"].student.distill.labels == "online"
    stored = {kind: run for kind, run in made.items() if kind != "online"}
    assert len({run.label_sets() for run in stored.values()}) == 1, "one pass writes the labels of all"
    assert {kind: run.label_set(run.student).name for kind, run in made.items()} == {
        "ensemble": "resnet+efficientnet+regnet-K0-d1",
        "offsets": "resnet-K2-d2",
        "combined": "resnet+efficientnet+regnet-K2-d2",
        "online": "resnet-K2-d2",
    }
    for run in made.values():
        assert dataclasses.replace(run.student, distill=spec.student.distill) == spec.student
        assert run.search.trials == 0 and run.teachers == spec.teachers and run.data == spec.data
    with pytest.raises(SpecError, match="no 'offset'; did you mean 'offsets'"):
        variant(spec, "offset")


def test_a_seed_reaches_every_network():
    spec = with_seed(load(["demo"]), 7)
    assert {train.seed for train in [*spec.teachers.values(), spec.student]} == {7}


def fake_scores(monkeypatch):
    """Rows whose errors tell which run they come from; returns the titles of the runs."""
    titles = []

    def scores(spec, title):
        titles.append(title)
        labels = spec.label_set(spec.student)
        own = spec.student.seed + 0.1 * labels.radius + 0.01 * len(labels.teachers)
        names = {"resnet": 5.0, "hard": 10.0 + spec.student.seed, "distilled": 8.0 + own}
        rows = [
            {"test": "heads", "name": name, "role": "role", "n": 40, "parameters": 1e6, "latency_ms": 1.0}
            | dict.fromkeys(("pitch", "yaw", "roll", "mae", "geodesic"), value)
            for name, value in names.items()
        ]
        return {"rows": rows, "heatmap": {"heads": [{"K": 0, "d": 1, "mae": 6.0 + spec.student.seed}]}}

    monkeypatch.setattr(compare_seeds, "scores", scores)
    return titles


def test_the_table_has_a_row_a_network_with_mean_and_spread(monkeypatch, tmp_path):
    titles = fake_scores(monkeypatch)
    spec = load(["demo"], ["student.distill.teachers=[]"])
    rows, cells = compare(spec, [0, 2])
    assert cells == [{"K": 0, "d": 1, "mae": 7.0}]
    assert titles == ["seed 0", "seed 2"]
    text = markdown(spec, rows, [0, 2])
    assert "| hard | role | 11.00 ± 1.41 |" in text and "| **distilled** | role | 9.23 ± 1.41 |" in text
    assert "lowers the student's MAE by 16.2 % (gain by seed: +17.7 %, +14." in text
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- seeds:demo -->\nold\n<!-- /seeds -->\nafter\n")
    into_readme(page, "seeds:demo", text)
    assert page.read_text() == f"before\n<!-- seeds:demo -->\n{text}\n<!-- /seeds -->\nafter\n"


def test_every_variant_has_a_row_beside_one_hard_twin(monkeypatch):
    fake_scores(monkeypatch)
    spec = load(["demo"])
    rows, _ = compare(spec, [0], list(KINDS))
    names = [row["name"] for row in rows]
    assert sorted(names) == sorted(["resnet", "hard", *(f"distilled: {kind}" for kind in KINDS)])
    text = markdown(spec, rows, [0])
    assert (
        text.count("the student's MAE by") == len(KINDS) and "from the teachers' ensemble over offsets lowers" in text
    )


def test_a_page_without_the_place_is_refused_before_anything_runs(monkeypatch, tmp_path):
    titles = fake_scores(monkeypatch)
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    with pytest.raises(SpecError, match="has no place for this table"):
        main(["-c", "demo", f"readme={page}", "variants=ensemble"])
    with pytest.raises(SpecError, match="not a list of whole numbers"):
        main(["-c", "demo", "seeds=one"])
    with pytest.raises(SpecError, match="heatmap_radius is 0, so there is none"):
        main(["-c", "demo", "evaluate.heatmap_radius=0", "heatmap=map.png"])
    with pytest.raises(SpecError, match="not a .png file in a folder that exists"):
        main(["-c", "demo", "heatmap=nowhere/map.png"])
    assert titles == []
