"""The comparison over seeds: what a seed and a variant change, and the table that goes into a page."""

import dataclasses
import json

import pytest

from hpe_core.errors import SpecError
from workflows import compare_seeds
from workflows.compare_seeds import KINDS, compare, main, variant, with_seed
from workflows.engine.config import load
from workflows.engine.results import DEGREES, Cell, EvaluateResult, Results, Role, Row
from workflows.full_pipeline import STAGES
from workflows.report.comparison import Compared, markdown


def test_variants_differ_in_their_soft_labels_only_and_share_the_labels_stage():
    spec = load(["demo"])
    made = {kind: variant(spec, kind) for kind in KINDS}
    assert made["online"].label_sets() == () and made["online"].student.distill.labels == "online"
    stored = {kind: run for kind, run in made.items() if kind != "online"}
    assert len({run.label_sets() for run in stored.values()}) == 1, "one pass writes the labels of all"
    assert {kind: run.label_set(run.student).name for kind, run in made.items()} == {
        "ensemble": "resnet+turned-K0-d1-mirrored",
        "offsets": "resnet-K2-d2-mirrored",
        "combined": "resnet+turned-K2-d2-mirrored",
        "online": "resnet-K2-d2-mirrored",
    }
    for run in made.values():
        assert dataclasses.replace(run.student, distill=spec.student.distill) == spec.student
        assert run.search.trials == 0 and run.teachers == spec.teachers and run.data == spec.data
    with pytest.raises(SpecError, match="no 'offset'; did you mean 'offsets'"):
        variant(spec, "offset")


def test_a_seed_reaches_every_network():
    spec = with_seed(load(["demo"]), 7)
    assert {train.seed for train in [*spec.teachers.values(), spec.student]} == {7}


def fake_runs(monkeypatch):
    """Rows whose errors tell which run they come from; returns the seeds of the runs."""
    seeds = []

    def run(stages, spec):
        assert stages == STAGES[:-1], "publishing would move the registry's aliases with every seed"
        seeds.append(spec.student.seed)
        labels = spec.label_set(spec.student)
        own = spec.student.seed + 0.1 * labels.radius + 0.01 * len(labels.teachers)
        names = {"resnet": 5.0, "hard": 10.0 + spec.student.seed, "distilled": 8.0 + own}
        rows = tuple(
            Row("heads", name, Role.HARD, "role", {**dict.fromkeys(DEGREES, value), "n": 40}, 1e6, 1.0 + seeds[-1] ** 2)
            for name, value in names.items()
        )
        cells = {"heads": (Cell(0, 1, 6.0 + spec.student.seed),), "others": ()}
        return Results({"evaluate": EvaluateResult(rows, (), {}, {}, cells)})

    monkeypatch.setattr(compare_seeds.pipeline, "run", run)
    return seeds


def test_the_table_has_a_row_a_network_with_mean_and_spread(monkeypatch, tmp_path, capsys):
    runs = fake_runs(monkeypatch)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- seeds:demo -->\nold\n<!-- /seeds -->\nafter\n")
    assert main(["-c", "demo", "student.distill.teachers=[]", "seeds=0,1,2", f"readme={page}"]) == 0
    text, said = capsys.readouterr()
    assert runs == [0, 1, 2] and said.splitlines() == ["seed 0", "seed 1", "seed 2"]
    assert "| hard | role | 11.00 ± 1.00 |" in text and "| **distilled** | role | 9.22 ± 1.00 |" in text
    assert "| 1.00 M | 2.0 |" in text, "of three latencies, 1, 2 and 5 ms, the median"
    assert "lowers the student's MAE by 16.3 % (gain by seed: +17.8 %, +16.2 %, +14.8 %)." in text
    assert page.read_text() == f"before\n<!-- seeds:demo -->\n{text}<!-- /seeds -->\nafter\n"


def test_the_map_is_the_mean_over_the_seeds(monkeypatch):
    fake_runs(monkeypatch)
    _, cells = compare(load(["demo"]), [0, 2])
    assert cells == [Cell(0, 1, 7.0)]


def test_json_has_a_value_a_seed(monkeypatch, capsys):
    fake_runs(monkeypatch)
    assert main(["-c", "demo", "seeds=0,2", "--json"]) == 0
    hard = next(row for row in json.loads(capsys.readouterr().out) if row["name"] == "hard")
    assert hard["mae"] == [10.0, 12.0] and hard["latency_ms"] == 3.0 and hard["n"] == 40 and hard["test"] == "heads"


def test_every_variant_has_a_row_beside_one_hard_twin(monkeypatch):
    fake_runs(monkeypatch)
    rows, _ = compare(load(["demo"]), [0], list(KINDS))
    assert sorted(row.name for row in rows) == sorted(["resnet", "hard", *(f"distilled: {kind}" for kind in KINDS)])
    text = markdown(rows, [0], KINDS)
    assert text.count("the student's MAE by") == len(KINDS)
    assert "from the teachers' ensemble over offsets lowers" in text
    assert "| **distilled: online** | the base teacher's offsets, asked about the very view" in text


def test_a_student_that_lost_is_said_to_have_raised_the_error():
    def row(name, mae):
        return Compared("heads", name, "role", 40, 1e6, {key: [mae] for key in (*DEGREES, "latency_ms")})

    rows = [row(name, 4.0) for name in ("distilled-2", "distilled: by hand")]  # teachers
    text = markdown([*rows, row("hard", 10.0), row("distilled", 12.5)], [0], KINDS)
    assert "| distilled-2 |" in text and text.count("Distillation") == 1
    assert text.endswith("Distillation raises the student's MAE by 25.0 % (gain by seed: -25.0 %).")


def test_a_page_without_the_place_is_refused_before_anything_runs(monkeypatch, tmp_path):
    runs = fake_runs(monkeypatch)
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    with pytest.raises(SpecError, match="there is no such file"):
        main(["-c", "demo", f"readme={tmp_path / 'gone.md'}"])
    with pytest.raises(SpecError, match="has no place for this table"):
        main(["-c", "demo", f"readme={page}", "variants=ensemble"])
    with pytest.raises(SpecError, match="not a list of whole numbers"):
        main(["-c", "demo", "seeds=one"])
    with pytest.raises(SpecError, match="seeds=0,1,0 names a seed twice"):
        main(["-c", "demo", "seeds=0,1,0"])
    with pytest.raises(SpecError, match="seed must be at least 0"):
        main(["-c", "demo", "seeds=0,-1"])
    for kind in ("offsets", "combined", "online"):
        with pytest.raises(
            SpecError, match=f"variants: '{kind}' needs offsets, and student.distill.offset_radius is 0"
        ):
            main(["-c", "demo", "student.distill.offset_radius=0", f"variants=ensemble,{kind}"])
    with pytest.raises(SpecError, match="heatmap_radius is 0, so there is none"):
        main(["-c", "demo", "evaluate.heatmap_radius=0", "heatmap=map.png"])
    with pytest.raises(SpecError, match="not a .png file in a folder that exists"):
        main(["-c", "demo", "heatmap=nowhere/map.png"])
    assert runs == []
