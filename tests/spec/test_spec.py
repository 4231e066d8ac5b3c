"""Configuration: wrong keys name the nearest right one, wrong values what is allowed, round trips are identity."""

import dataclasses
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.datasets.registry import check_datasets
from hpe_core.errors import SpecError
from hpe_core.shipped import STUDENT_FILE, network_folder
from hpe_core.spec.data import DatasetSpec, DataSpec
from hpe_core.spec.pipeline import PipelineSpec, student_with
from hpe_core.spec.serde import build, to_dict
from hpe_core.spec.training import LabelSet, TrainSpec, canonical_offsets
from workflows.engine.config import REPO, as_yaml, load

CONFIGS = sorted((REPO / "conf").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_survives_a_round_trip(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HPE_DATA", str(tmp_path))
    overlay = "\nname:" not in path.read_text()
    spec = load(["demo", str(path)] if overlay else [str(path)])
    assert build(PipelineSpec, to_dict(spec)) == spec
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(spec))
    assert load([str(again)]) == spec
    assert path.read_text().startswith("#"), "a config opens with its command, cost and score"


def test_a_sweep_that_states_its_cost_says_how_many_settings_it_trains_to_the_end(tmp_path):
    """A measured figure must not change with the finalists of the file that the overlay is laid over."""
    other = tmp_path / "other.yaml"
    other.write_text("search: {finalists: 77}")
    texts = {path: path.read_text() for path in sorted((REPO / "conf" / "sweep").glob("*.yaml"))}
    measured = {path: text for path, text in texts.items() if "not run to its end" not in text}
    assert measured
    for path, text in measured.items():
        base = re.findall(r"-c (\S+)", text)[0]
        assert load([base, str(other), str(path)]).search.finalists != 77, path.name


def test_the_header_of_the_photographs_says_what_the_page_of_results_says():
    header = (REPO / "conf" / "real_tests.yaml").read_text().partition("\ndata:")[0]
    section = (REPO / "docs" / "results.md").read_text().partition("## Real photographs\n")[2].partition("\n## ")[0]
    figures = re.findall(r"\d+ s\b|\d+\.\d\d", header)
    assert len(figures) == 5 and all(re.search(rf"\b{re.escape(figure)}\b", section) for figure in figures)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("studnet.optim.lr=1", "unknown key studnet; did you mean 'student'?"),
        ("student.optim.lrr=1", "unknown key student.optim.lrr; did you mean 'lr'?"),
        ("student.optim.schedule=cosin", "allowed: cosine, constant; did you mean 'cosine'?"),
        ("student.optim.epochs=2.5", "student.optim.epochs is 2.5; a whole number is needed"),
        ("student.optim.epochs=0", "student.optim.epochs must be at least 1, got 0"),
        ("student.optim.lr=fast", "student.optim.lr is 'fast'; a number is needed"),
        ("student.optim.lr=.nan", "a finite number is needed"),
        ("student.net.regression_head=maybe", "allowed: true, false"),
        ("teachers.regnt.optim.lr=1", "teachers has no entry 'regnt'"),
        ("data.train=[haeds]", "data.train names 'haeds', which data.datasets does not define"),
        ("data.datasets.heads.reader=sythetic", "did you mean 'synthetic'?"),
        *(
            (f'teachers={{"{name}": {{}}}}', f"teachers.{name}: a name is made of letters")
            for name in ("hard", "distilled", "distilled ", "offset ensemble", "distilled: offsets", "distilled:x")
        ),
        ("student.distill=null", "student.distill is missing"),
        ("student.distill.offset_radius=99", "exceeds data.crop.margin_px"),
        ("student.net.bin_widths=[1]", "narrowest bin width"),
        ("data.limit_deg=120", "net.limit_deg 99.0 is smaller than data.limit_deg 120.0"),
        ("student.net.head=sixth", "allowed: bins, sixd, fisher; did you mean 'sixd'?"),
        ("student.net.head=sixd", "student: hard_loss dldl does not fit net.head sixd; it takes geodesic"),
        (
            "teachers.resnet={net: {head: fisher}, hard_loss: fisher}",
            "teachers.resnet.net: a student with bins learns from teachers with bins, not from head fisher;",
        ),
        ("search.space.net.head.choice=[fisher]", "search.space.net.head: student: hard_loss dldl does not fit"),
        ("search.space.optim.lrr.choice=[1]", "student.optim.lrr does not exist; did you mean 'lr'?"),
        ("evaluate.base=nobody", "is no teacher"),
        ("student.distill.teachers=[resnt]", "'resnt' is no teacher; did you mean 'resnet'?"),
        ("student.optim.accumulate=20", "leaves less than two faces"),
        ("cluster.workers=3", "batch_size 32 is no multiple of cluster.workers 3"),
        ("cluster.workers=32", "leaves less than two faces for each of 32 parts"),
        ("student.augment.turn_gain=0.5", "turn_gain is 0 or at least 1"),
        *((f"publish.alias={name}", "means something else in the registry") for name in ("candidate", "Latest", "V2")),
        ("publish.alias=best one", "publish: alias 'best one' is not of letters, digits and -_"),
        *((f"publish.model_name=my{sign}model", "holds one of / : @ '") for sign in "/:@'"),
        ("search.space.net.pretrained.choice=[a]", "weights files are not searched"),
        ("search.space.start.choice=[a]", "search.space.start: weights files are not searched"),
        ("student.start=a", "a student with a start keeps the backbone that it starts from"),
        ("search.space.optim.epochs.choice=[9]", "search.space.optim.epochs: every trial has search.epochs epochs"),
        ("evaluate.heatmap_radius=50", "evaluate.heatmap_radius 50 exceeds data.crop.margin_px"),
        (
            "search.space.optim.optimizer.choice=[adamm]",
            "search.space.optim.optimizer: student.optim.optimizer is 'adamm'",
        ),
        ("search.space.augment.jitter_px.choice=[50]", "exceeds data.crop.margin_px"),
        ("search.space.distill.offset_step.choice=[0]", "must be at least 1"),
        ("search.space.optim.choice=[{lr: 1}]", "search.space.optim is a group of keys; search those in it"),
        ("search.space.distill.choice=[null]", "search.space.distill is a group of keys"),
        ("search.space.optim.batch_size={choice: [8], low: 8}", "either choice: [...] or low: and high:"),
        ("search.space.optim.batch_size.high=8", "either choice: [...] or low: and high:"),
        ("search.space.augment.turn_gain={low: 0, high: 3}", "turn_gain is 0 or at least 1"),
        (
            "search.space.optim={batch_size: {choice: [4, 32]}, accumulate: {low: 1, high: 8}}",
            "search.space: student.optim: accumulate 8 leaves less than two faces of a batch of 4",
        ),
        ("data.train=[heads, heads]", "data.train names 'heads' twice: each of its faces would count twice"),
        ("data.test=[heads, heads]", "data.test names 'heads' twice"),
        ("cluster.max_failures=-1", "cluster.max_failures must be at least 0, got -1"),
        ("data.test=[]", "data.test names no dataset"),
        ("data={test: [again], datasets: {again: {reader: synthetic, seed: 1, count: 30}}}", "same faces as 'heads'"),
        ("store=", "store has no value"),
        ("noequals", "write key=value"),
    ],
)
def test_a_mistake_is_one_sentence(override, said):
    with pytest.raises(SpecError) as caught:
        load(["demo"], [override])
    message = str(caught.value)
    assert said in message and "\n" not in message


def test_a_student_of_rotations_asks_for_them_of_any_teachers():
    """Temperature is bins', so it is not searched; the label sets say their form in their names."""
    rotations = ["student={net: {head: fisher}, hard_loss: fisher}", "search.space.distill.temperature=null"]
    bins, own = load(["demo"]), load(["demo"], rotations)
    assert {labels.form for labels in own.label_sets()} == {"rotations"}
    assert {labels.name for labels in own.label_sets()} == {f"{labels.name}-rotations" for labels in bins.label_sets()}
    assert load(["demo"], [*rotations, "teachers.resnet={net: {head: sixd}, hard_loss: geodesic}"])
    wide = [*rotations, "data.limit_deg=120", *(f"teachers.{name}.net.limit_deg=120" for name in bins.teachers)]
    assert load(["demo"], wide).student.net.farthest == 180, "limit_deg is that of bins"


@pytest.mark.parametrize("name", ["scale/ehpnet", "scale/ehpnet.yaml", "conf/scale/ehpnet", "conf/scale/ehpnet.yaml"])
def test_the_projects_own_files_have_names_that_hold_in_every_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load([name]).name == "ehpnet-scale"
    own = tmp_path / name
    own.parent.mkdir(parents=True)
    own.write_text("include: [%s]\nname: mine" % (REPO / "conf" / "demo.yaml"))
    assert load([name]).name == "mine", "a file of this path in the working folder goes before"


def test_archives_lie_where_a_variable_says_and_an_unset_one_is_named(monkeypatch):
    monkeypatch.setenv("HPE_DATA", "/archives")
    assert load(["pointing04"]).data.datasets["aflw2000"].root == "/archives/aflw2000"
    monkeypatch.delenv("HPE_DATA")
    with pytest.raises(SpecError, match=r"^data.datasets.\w+.root needs the environment variable HPE_DATA, which"):
        load(["pointing04"])
    assert load(["pointing04"], ["data.datasets.pointing04.root=/a", "data.datasets.aflw2000.root=/b"])


def test_an_interpolation_that_leads_nowhere_names_its_key(tmp_path):
    (tmp_path / "a.yaml").write_text("name: ${nobody.here}")
    with pytest.raises(SpecError, match=r"^name cannot be resolved: Interpolation key 'nobody.here' not found$"):
        load(["demo", str(tmp_path / "a.yaml")])


def test_files_merge_left_to_right_and_missing_files_are_named(tmp_path):
    (tmp_path / "over.yaml").write_text("student: {optim: {lr: 0.5}}\n")
    spec = load(["demo", str(tmp_path / "over.yaml")], ["student.optim.epochs=3"])
    assert spec.student.optim.lr == 0.5 and spec.student.optim.epochs == 3
    with pytest.raises(SpecError, match="no configuration file dmeo; did you mean 'demo'"):
        load(["dmeo"])
    with pytest.raises(SpecError, match="no configuration file conf/scale/ehpnt.yaml; did you mean 'scale/ehpnet'"):
        load(["conf/scale/ehpnt.yaml"])
    (tmp_path / "broken.yaml").write_text("a: [1, 2\n")
    with pytest.raises(SpecError, match="not readable YAML"):
        load([str(tmp_path / "broken.yaml")])


def test_a_teacher_or_searched_key_can_be_dropped_and_paths_become_absolute():
    names = list(load(["demo"]).teachers)
    spec = load(["demo"], [f"teachers.{names[-1]}=null"])
    assert list(spec.teachers) == names[:-1]
    assert Path(spec.store).is_absolute()
    assert "optim.lr" not in load(["demo"], ["search.space.optim.lr=null"]).search.space


@given(st.integers(0, 20), st.integers(1, 20))
def test_pairs_with_the_same_windows_share_a_name(radius, step):
    from hpe_core.geometry.crop import offset_grid

    assert offset_grid(*canonical_offsets(radius, step)) == offset_grid(radius, step)
    assert canonical_offsets(*canonical_offsets(radius, step)) == canonical_offsets(radius, step)


def test_a_range_holds_no_batch_that_workers_cannot_share():
    """One worker takes any; two would share a batch of 9 unevenly, and their gradients would not weigh the same."""
    space = "search.space.optim.batch_size={low: 8, high: 32}"
    assert load(["tests/tiny.yaml"], [space])
    with pytest.raises(SpecError, match="student.optim.batch_size 9 is no multiple of cluster.workers 2"):
        load(["tests/tiny.yaml"], [space, "cluster.workers=2"])


@given(st.integers(1, 40), st.integers(1, 100))
def test_a_set_of_labels_has_a_name_that_a_folder_can_have_and_no_other_set(count, letters):
    """However many teachers there are; the few of most runs are named."""
    teachers = tuple(f"{'n' * letters}{number:02d}"[-100:] for number in range(count))
    sets = [LabelSet(teachers, 4, 2), LabelSet(teachers, 4, 2, True), LabelSet(teachers, 4, 2, True, "rotations")]
    sets += [LabelSet(teachers[::-1] if count > 1 else ("other",), 4, 2), LabelSet((*teachers, "other"), 4, 2)]
    names = [labels.name for labels in sets]
    assert len(set(names)) == len(sets) and all(len(name) <= 250 and name.isascii() for name in names)
    assert (names[0] == "+".join(teachers) + "-K4-d2") == (len("+".join(teachers)) <= 200)


def test_every_label_set_that_a_trial_may_ask_for_is_written():
    space = ["search.space.distill.teachers.choice=[[],[turned],[resnet]]", "student.distill.teachers=[]"]
    spec = load(["demo"], space)
    names = {labels.name for labels in spec.label_sets()}
    for teachers in ([], ["turned"], ["resnet"]):
        for radius in (2, 3):
            changes = {"distill.teachers": teachers, "distill.offset_radius": radius}
            assert spec.label_set(student_with(spec.student, changes)).name in names
    assert len(names) == 3 * 3, "K=2 d=2, K=3 d=3 and the single window (K=2, d=3), of three teacher sets"
    assert "turned-K2-d2-mirrored" in names and "resnet+turned-K3-d3-mirrored" in names


def test_online_labels_are_written_by_nobody_and_need_the_margin_for_jitter_too():
    wide = ["data.crop.margin_px=8", "student.distill.labels=online"]
    assert load(["demo"], wide).label_sets() == ()
    alone = ["search.space=null", "student.distill.labels=online"]
    assert load(["demo"], alone).label_sets() == ()
    with pytest.raises(SpecError, match="look K \\+ augment.jitter_px = 8 pixels aside"):
        load(["demo"], [*alone, "student.distill.offset_radius=4"])


def test_online_labels_leave_room_for_every_searched_jitter():
    online = ["search.space=null", "student.distill.labels=online", "student.augment.jitter_px=0"]
    load(["demo"], online)
    for jitter in ("choice=[0,6]", "low=0"):
        high = ["search.space.augment.jitter_px.high=6"] if jitter == "low=0" else []
        with pytest.raises(SpecError, match="look K .* = 8 pixels aside"):
            load(["demo"], [*online, f"search.space.augment.jitter_px.{jitter}", *high])


@pytest.mark.parametrize(
    ("trained", "tested", "same"),
    [
        ({"reader": "aflw", "root": "/a"}, {"reader": "aflw2000", "root": "/b"}, True),
        ({"reader": "aflw", "root": "/a", "test_groups": ["image00002"]}, {"reader": "aflw2000", "root": "/b"}, False),
        ({"reader": "biwi", "root": "/x/biwi"}, {"reader": "biwi", "root": "/x/biwi/hpdb"}, True),
        ({"reader": "biwi", "root": "/x/biwi/hpdb"}, {"reader": "biwi", "root": "/x/biwi/hpdb/01"}, True),
        ({"reader": "pointing04", "root": "/p"}, {"reader": "pointing04", "root": "/p/Person05"}, True),
        ({"reader": "pointing04", "root": "/p/Person05"}, {"reader": "pointing04", "root": "/p/Person06"}, False),
        ({"reader": "aflw2000", "root": "/a"}, {"reader": "aflw2000", "root": "/ab"}, False),
        ({"reader": "pointing04", "root": "s3://p"}, {"reader": "pointing04", "root": "s3://p/Person05/"}, True),
        ({"reader": "manifest", "root": "/m"}, {"reader": "manifest", "root": "/m/more"}, False),
        ({"reader": "manifest", "root": "/m"}, {"reader": "manifest", "root": "/m/manifest.csv"}, True),
        ({"reader": "manifest", "root": "/m.d"}, {"reader": "manifest", "root": "/m.d/manifest.csv"}, True),
        ({"reader": "manifest", "root": "/d/v1.0"}, {"reader": "manifest", "root": "/d/v1.1"}, False),
        ({"reader": "manifest", "root": "/m/train.csv"}, {"reader": "manifest", "root": "/m/test.csv"}, False),
        ({"reader": "manifest", "root": "/m/test.csv"}, {"reader": "manifest", "root": "/m/test.csv"}, True),
        ({"reader": "synthetic", "seed": 1, "count": 9}, {"reader": "synthetic", "seed": 1, "count": 30}, True),
        ({"reader": "300w_lp", "root": "/w"}, {"reader": "aflw2000", "root": "/b"}, False),
        ({"reader": "300w_lp", "root": "/w"}, {"reader": "300w", "root": "/b"}, True),
        ({"reader": "300w_lp", "root": "/w"}, {"reader": "300w", "root": "/b", "test_groups": ["wflw/1"]}, False),
    ],
)
def test_archives_of_the_same_pictures_are_known(trained, tested, same):
    datasets = {"trained": build(DatasetSpec, trained), "tested": build(DatasetSpec, tested)}
    for role, other in (("trained", "tested"), ("tested", "trained")):
        data = DataSpec(datasets, (role,), (other,))
        with pytest.raises(SpecError, match="same faces as") if same else nullcontext():
            check_datasets(data)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"boxes": "b.json"}, None),
        ({"root": "/x/biwi/hpdb", "convention": {"yaw_sign": -1}}, None),
        ({"root": "/other"}, None),
        *(({key: value}, key) for key, value in (("seed", 1), ("test", 0.0), ("val", 0.0), ("count", 9))),
        ({"test_groups": ["person01"]}, "test_groups"),
        ({"group_by": "sequence"}, "group_by"),
        ({"root": "/x/biwi/hpdb/01"}, "root"),
    ],
)
def test_an_archive_that_is_trained_on_twice_is_divided_once(changed, said):
    """Else the second dataset trains on people that the first one tests on."""
    keys = {"reader": "biwi", "root": "/x/biwi", "test": 0.3}
    datasets = {"one": build(DatasetSpec, keys), "two": build(DatasetSpec, keys | changed)}
    for test in ("one", "two"):
        data = DataSpec(datasets, ("one", "two"), (test,))
        with pytest.raises(SpecError, match=f"same faces as .* {said}") if said else nullcontext():
            check_datasets(data)


def test_a_file_that_was_included_is_not_laid_over_what_came_since(tmp_path):
    (tmp_path / "base.yaml").write_text(as_yaml(load(["demo"])))
    (tmp_path / "one.yaml").write_text("include: base.yaml\nsearch: {trials: 7}\n")
    (tmp_path / "two.yaml").write_text("include: [base.yaml]\nname: two\n")
    spec = load([str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")])
    assert (spec.search.trials, spec.name) == (7, "two")
    (tmp_path / "lost.yaml").write_text("include: [nobody.yaml]\n")
    with pytest.raises(SpecError, match="includes nobody.yaml, which is not there"):
        load([str(tmp_path / "lost.yaml")])
    (tmp_path / "empty.yaml").write_text("include:\n")
    with pytest.raises(SpecError, match="include names files"):
        load([str(tmp_path / "empty.yaml")])


def test_student_with_changes_only_what_it_names():
    student = load(["demo"]).student
    changed = student_with(student, {"optim.lr": 0.123, "distill.temperature": 3})
    assert changed.optim.lr == 0.123 and changed.distill.temperature == 3
    assert dataclasses.replace(changed, optim=student.optim, distill=student.distill) == student
    with pytest.raises(SpecError, match="does not exist"):
        student_with(student, {"optim.speed": 1})
    assert build(TrainSpec, to_dict(student)) == student


def test_a_start_is_found_from_any_folder(monkeypatch, tmp_path):
    """Ray moves its workers into folders of their own."""
    config = str(REPO / "tests" / "tiny.yaml")
    monkeypatch.chdir(tmp_path)
    spec = load([config], ["teachers.resnet.start=a/b", "student.start=c"])
    assert (spec.teachers["resnet"].start, spec.student.start) == (str(tmp_path / "a/b"), str(tmp_path / "c"))
    assert spec.teachers["byobnet"].start == ""
    assert load([config], ["student.start=shipped/student"]).student.start == "shipped/student"  # wherever it lies
    assert network_folder("shipped/student") == STUDENT_FILE.parent and network_folder("a/b") == Path("a/b")
    said = "^teachers.resnet.start: shipped/techer is no network of this package; did you mean 'teacher'"
    with pytest.raises(SpecError, match=said):
        load([config], ["teachers.resnet.start=shipped/techer"])
