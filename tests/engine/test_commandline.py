"""key=value words: text is taken as it is written, everything else is read by the type of its key."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.errors import SpecError
from hpe_core.spec.data import DatasetSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build
from workflows import predict
from workflows.doctor import dataset_alone
from workflows.engine.commandline import typed_overrides
from workflows.engine.config import arguments, as_yaml, load
from workflows.prediction.keys import spec_of

PRINTABLE = st.text(min_size=1).filter(str.isprintable)
NASTY = st.text(alphabet="\\${}?:#[]()'\"!&*|>-%@` ,a0\t", min_size=1)
TEXTS = ["/data/my runs #2", "0123", "on", "null", "~", "1e5", "1_000", "/data/x: y", "a=b", "[a", "'x'", "???"]
TEXTS += ["${nobody}", "${oc.env:HOME}", "${", "\\${a}", "\\\\${a", "\\"]
KEYS = ("store", "student.net.backbone", "data.datasets.my data.root", "data.datasets.x.detector.model")


def read(*words: str) -> Any:
    """What the last word gives its key."""
    found: Any = typed_overrides(PipelineSpec, words)
    for name in words[-1].partition("=")[0].split("."):
        found = found[name]
    return found


@settings(max_examples=300, deadline=None)
@given(st.one_of(PRINTABLE, NASTY, st.sampled_from(TEXTS)))
def test_any_text_of_a_text_key_is_that_text(text):
    assert [read(f"{key}={text}") for key in KEYS] == [text] * len(KEYS)
    assert spec_of([f"model={text}", "boxes=whole"]).model == text
    assert build(DatasetSpec, typed_overrides(DatasetSpec, ["reader=aflw", f"root={text}"])).root == text


@pytest.mark.parametrize("text", TEXTS)
def test_such_a_text_goes_the_whole_way_through_the_configuration_and_back(text, tmp_path):
    spec = load(["demo"], [f"name={text}", f"mlflow.experiment={text}"])
    assert (spec.name, spec.mlflow.experiment) == (text, text)
    (tmp_path / "again.yaml").write_text(as_yaml(spec))
    assert load([str(tmp_path / "again.yaml")]) == spec


def test_a_key_that_is_given_twice_is_told_and_the_last_one_counts(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a=1.jpg", "a=2.jpg"):
        (tmp_path / name).write_text("pictures, and no keys")
    _, spec, _ = predict.command_line(["a=1.jpg", "turns=1", "a=2.jpg", "out=a", "turns=4", "out=a"])
    assert spec.turns == 4
    assert capsys.readouterr().err == "turns is given more than once; the last one counts: turns=4\n"
    arguments(["faces=3", "faces=7", "root=a"], "doctor", ("run",))
    assert "faces is given more than once; the last one counts: faces=7" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["/data/my runs #2", "/data/0123", "/data/x: y", "/data/[a]", "/data/on"])
def test_a_path_is_taken_as_it_is_written(text):
    assert load(["demo"], [f"store={text}"]).store == text
    heads = load(["demo"], ["data.datasets.heads.reader=manifest", f"data.datasets.heads.root={text}"])
    assert heads.data.datasets["heads"].root == text
    assert dataset_alone(["reader=manifest", f"root={text}"]).datasets["manifest"].root == text


def test_a_reference_of_a_file_sees_the_text_of_a_word(tmp_path):
    (tmp_path / "over.yaml").write_text("mlflow: {experiment: '${name} at ${student.optim.epochs}'}\n")
    spec = load(["demo", str(tmp_path / "over.yaml")], ["name=${x} #1", "student.optim.epochs=7"])
    assert spec.mlflow.experiment == "${x} #1 at 7"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("student.optim.epochs=012", 12),
        ("student.optim.epochs=1_0", 10),
        ("student.optim.lr=1e-3", 1e-3),
        ("student.optim.lr=1", 1),
        ("student.optim.amp=true", True),
        ("student.optim.amp=off", False),
        ("student.optim.schedule=constant", "constant"),
        ("student.optim.epochs=soon", "soon"),
        ("student.distill=null", None),
        ("student.distill.teachers=[01, on, null]", ["01", "on", "null"]),
        ("student.distill.teachers=a, b", ["a, b"]),
        ("student.net.bin_widths=[1, 2.5]", [1, 2.5]),
        ("data.datasets.heads.convention.yaw_sign=-1", -1),
        ("search.space.optim.lr={low: 1e-4, high: 1e-2}", {"low": 1e-4, "high": 1e-2}),
        ("search.space.optim.lr.choice=[1e-3, 2e-3]", [1e-3, 2e-3]),
        ("search.space=null", None),
        ("student.optim.lr=${teachers.a.optim.lr}", 0.5),
    ],
)
def test_other_keys_are_read_by_their_type(word, value):
    found = read("teachers.a.optim.lr=0.5", word)
    assert found == value and type(found) is type(value)


def test_of_two_words_the_last_counts_and_mappings_are_merged():
    words = ["name=a", "name=b", "student.distill={scale: 2, temperature: 3}", "student.distill.scale=4"]
    assert typed_overrides(PipelineSpec, words) == {"name": "b", "student": {"distill": {"scale": 4, "temperature": 3}}}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("student.net.bin_widths=[1", "'student.net.bin_widths=[1' cannot be read: "),
        ("student.optim.lr=${nobody}", "student.optim.lr cannot be resolved: "),
        ("noequals", "'noequals' is no override"),
        ("=3", "'=3' is no override"),
    ],
)
def test_a_word_that_cannot_be_read_is_one_sentence(word, said):
    with pytest.raises(SpecError) as caught:
        typed_overrides(PipelineSpec, [word])
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.one_of(PRINTABLE, NASTY), st.one_of(PRINTABLE, NASTY))
def test_no_word_does_anything_but_be_read_or_refused(key, text):
    try:
        typed_overrides(PipelineSpec, [f"{key}={text}"])
    except SpecError as error:
        assert "\n" not in str(error)
