"""key=value words are read by the type of their key; the text of a str key is taken as it is written."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hpe_core.errors import SpecError
from hpe_core.spec.data import DatasetSpec
from hpe_core.spec.pipeline import PipelineSpec
from workflows.doctor import dataset_alone
from workflows.engine.config import load, typed_words
from workflows.prediction.keys import spec_of

TEXT = st.text(st.characters(exclude_categories=("C",)), min_size=1)
TEXTS = ("/data/my runs #2", "0123", "on", "1e5", "1_000", "/data/x: y", "null", "~", "${oc.env:HOME}", "a=b", "'x'")
TEXTS += ("\\${a}", "\\\\${a", "\\")
KEYS = ("store", "name", "student.net.backbone", "data.datasets.my data.root", "data.datasets.x.detector.model")


def read(word: str, kind: type = PipelineSpec) -> object:
    tree = OmegaConf.to_container(typed_words(kind, [word]), resolve=True)
    for part in word.partition("=")[0].split("."):
        tree = tree[part]  # type: ignore[index, call-overload]
    return tree


@given(TEXT)
@example(TEXTS[0])
def test_any_text_survives_a_text_key(text: str) -> None:
    for key in KEYS:
        assert read(f"{key}={text}") == text
    assert read(f"root={text}", DatasetSpec) == text


@pytest.mark.parametrize("text", TEXTS)
def test_words_that_yaml_would_change_are_what_they_are(text: str) -> None:
    assert read(f"store={text}") == text and read(f"data.datasets.x.test_groups=[a, {json.dumps(text)}]") == ["a", text]
    assert spec_of([f"model={text}", "boxes=whole"]).model == text
    assert load(["demo"], [f"name={text}"]).name == text


def test_a_store_is_the_very_folder_and_so_is_a_dataset(tmp_path) -> None:  # type: ignore[no-untyped-def]
    place = str(tmp_path / "my runs #2")
    assert load(["demo"], [f"store={place}"]).store == place
    assert dataset_alone(["reader=aflw2000", f"root={place}"]).datasets["aflw2000"].root == place


def test_other_keys_are_read_as_their_types() -> None:
    spec = load(["demo"], ["student.optim.lr=1e-3", "search.trials=0", "student.optim.amp=true", "search.space=null"])
    assert (spec.student.optim.lr, spec.search.trials, spec.student.optim.amp) == (0.001, 0, True)
    assert spec.search.space == {} and read("data.datasets.x.val_groups=0123") == ["0123"]
    space = load(["demo"], ["search.space.optim.epochs={choice: [2, 3]}"]).search.space
    assert space["optim.epochs"].choice == (2, 3)


@pytest.mark.parametrize("word", ["search.trials=[", "student.optim.lr={a"])
def test_a_word_that_cannot_be_read_is_named(word: str) -> None:
    with pytest.raises(SpecError, match="^'") as error:
        load(["demo"], [word])
    assert word in str(error.value)
