"""Annotations are kept to, however a spec is made, and each mistake names its full key."""

import dataclasses
import pickle
from collections.abc import Iterator
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import pytest

from hpe_core.errors import SpecError
from hpe_core.spec.data import CropSpec, DatasetSpec, DetectorSpec
from hpe_core.spec.pipeline import PipelineSpec, SearchSpec
from hpe_core.spec.serde import build, hint_at, hints_of, to_dict
from hpe_core.spec.training import OptimSpec
from workflows.engine.config import load

SPEC = load(["demo"])


def parts(value: Any) -> Iterator[Any]:
    """Every spec within a spec, itself first."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))
    for inner in value.values() if isinstance(value, dict) else ():
        yield from parts(inner)


KINDS = sorted({type(part) for part in [*parts(SPEC), DetectorSpec("y.onnx")]}, key=lambda kind: kind.__name__)


def bare(hint: Any) -> Any:
    while get_origin(hint) is Annotated or (NoneType in get_args(hint) and len(get_args(hint)) == 2):
        hint = get_args(hint)[0]
    return hint


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_true_is_no_number_and_nothing_is_no_value(kind):
    for name, hint in hints_of(kind).items():
        if bare(hint) in (int, float):
            with pytest.raises(SpecError, match=rf"^it\.{name} is True; a (whole )?number is needed$"):
                build(kind, {**needed(kind), name: True}, "it")
        if bare(hint) is str:
            with pytest.raises(SpecError, match=rf"^it\.{name} is True; text is needed"):
                build(kind, {**needed(kind), name: True}, "it")
        if NoneType not in get_args(hint) and get_origin(hint) is not dict and hint is not Any:
            with pytest.raises(SpecError, match=rf"^it\.{name} has no value$"):
                build(kind, {**needed(kind), name: None}, "it")


def needed(kind: Any) -> dict[str, Any]:
    """Plain values for the keys that have no default."""
    missing = [f for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    found = next(part for part in [*parts(SPEC), DetectorSpec("y.onnx")] if type(part) is kind)
    return {f.name: to_dict(getattr(found, f.name)) for f in missing}


@pytest.mark.parametrize(
    ("kind", "key", "value", "said"),
    [
        (CropSpec, "size", 15, "size must be at least 16, got 15"),
        (CropSpec, "box_scale", 5.5, "box_scale must be at most 5, got 5.5"),
        (CropSpec, "box_scale", 0.1, "box_scale must be at least 0.2, got 0.1"),
        (OptimSpec, "lr", 0.0, "lr must be greater than 0, got 0.0"),
        (OptimSpec, "ema_decay", 1.0, "ema_decay must be less than 1, got 1.0"),
        (OptimSpec, "warmup_epochs", 11.0, "warmup_epochs 11 exceeds epochs 10"),
        (SearchSpec, "grace_epochs", 5, "grace_epochs 5 exceeds epochs 4"),
    ],
)
def test_a_limit_holds_however_a_value_comes(kind, key, value, said):
    joint = ": " if "exceeds" in said else "."  # what is wrong of two keys together is said of their owner
    with pytest.raises(SpecError) as built:
        build(kind, {key: value}, "some.where")
    assert str(built.value) == f"some.where{joint}{said}"
    build(CropSpec, {"size": 16, "box_scale": 5})
    for make in (lambda: kind(**{key: value}), lambda: dataclasses.replace(kind(), **{key: value})):
        with pytest.raises(SpecError) as made:
            make()
        assert str(made.value) == said


def test_a_spec_is_frozen_is_hashed_and_travels():
    spec = DatasetSpec("aflw2000", "/a", detector=DetectorSpec("y.onnx"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.count = 3
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec and hash(again) == hash(spec) and dataclasses.asdict(again) == dataclasses.asdict(spec)
    assert pickle.loads(pickle.dumps(SPEC)) == SPEC


def test_plain_values_become_what_the_key_wants():
    spec = build(DatasetSpec, {"reader": "aflw", "root": 7, "val": 0, "count": 3.0, "test_groups": "image1"})
    assert (spec.root, spec.val, spec.count, spec.test_groups) == ("7", 0.0, 3, ("image1",))
    assert type(spec.val) is float and type(spec.count) is int
    assert build(SearchSpec, {"space": None}).space == {}
    for values, said in (
        ({"count": 2.5}, "count is 2.5; a whole number is needed"),
        ({"val": float("inf")}, "val is inf; a finite number is needed"),
        ({"root": ["a"]}, "root is ['a']; text is needed"),
        ({"links": "insde"}, "links is 'insde'; allowed: inside, anywhere; did you mean 'inside'?"),
        ({"detector": "y.onnx"}, "detector must be a mapping of keys, got 'y.onnx'"),
        ({"detector": {}}, "key detector.model is missing"),
        ({"test_groups": ["a", None]}, "test_groups[1] has no value"),
        ({"conventoin": {}}, "unknown key conventoin; did you mean 'convention'?"),
    ):
        with pytest.raises(SpecError) as caught:
            build(DatasetSpec, {"reader": "aflw", **values})
        assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("store", str),
        ("student.optim.lr", float),
        ("data.datasets.any.count", int),
        ("data.datasets.any.detector.model", str),
        ("data.datasets.any.detector.modell", None),
        ("search.space.optim.lr", None),
        ("data.train", tuple[str, ...]),
        ("name.of", None),
    ],
)
def test_the_type_of_a_key_is_found(key, hint):
    assert hint_at(PipelineSpec, key.split(".")) == hint
