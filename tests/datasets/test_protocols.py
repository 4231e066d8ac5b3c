"""Protocols: the hash follows every field and nothing else, and a configuration made from a protocol matches it."""

import dataclasses
import json

import pytest

from hpe_core.datasets.protocols import ALL, PROTOCOLS, Boxes, FaceSet, Protocol, Split, matches, protocol_named
from hpe_core.errors import SpecError
from hpe_core.spec.data import CropSpec, DatasetSpec, DataSpec
from workflows.engine.config import load

EVERY = list(PROTOCOLS.values())


@pytest.fixture(autouse=True)
def _archives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPE_DATA", "/archives")  # of the configurations for photographs; nothing is opened


def data_of(protocol: Protocol) -> DataSpec:
    """The configuration that a protocol describes, with datasets named as their readers."""
    trained = {part.reader for part in protocol.train}
    datasets = {}
    for part in (*protocol.train, *protocol.test):
        keys = {"root": "" if part.reader == "synthetic" else f"/{part.reader}", **dict(part.fixed)}
        if part.reader in trained:
            images = tuple(f"image{i:05d}" for i in range(protocol.split.test_images))
            keys |= {"test": protocol.split.test_share, "test_groups": protocol.split.test_groups or images}
        if protocol.boxes.source in ("yolov5", "retinaface", "not stated"):  # published: no archive has them
            keys["boxes"] = "b.json"
        datasets[part.reader] = DatasetSpec(part.reader, **keys)
    crop = CropSpec(protocol.size, shape=protocol.boxes.shape, box_scale=protocol.boxes.scale)
    tests = tuple(part.reader for part in protocol.test)
    return DataSpec(datasets, tuple(part.reader for part in protocol.train), tests, crop, protocol.filter_deg)


def with_dataset(data: DataSpec, name: str, **changes) -> DataSpec:
    changed = dataclasses.replace(data.datasets[name], **changes)
    return dataclasses.replace(data, datasets=data.datasets | {name: changed})


@pytest.mark.parametrize("protocol", EVERY, ids=lambda p: p.name)
def test_a_configuration_made_from_a_protocol_matches_it_and_no_other(protocol):
    data = data_of(protocol)
    assert matches(protocol, data) == []
    assert [other.name for other in EVERY if not matches(other, data)] == [protocol.name]


@pytest.mark.parametrize("protocol", EVERY, ids=lambda p: p.name)
def test_each_deviation_is_one_sentence(protocol):
    data, trained = data_of(protocol), protocol.train[0].reader
    other_shape = {"square": "stretch", "stretch": "square"}[data.crop.shape]
    crops = [
        dataclasses.replace(data.crop, **keys) for keys in ({"size": 97}, {"box_scale": 1.3}, {"shape": other_shape})
    ]
    changed = [
        *(dataclasses.replace(data, **keys) for keys in ({"limit_deg": 60.0}, {"test": data.test[1:]})),
        *(dataclasses.replace(data, crop=crop) for crop in crops),
        *(with_dataset(data, trained, **keys) for keys in ({"count": 17}, {"test_groups": ("somebody",)})),
    ]
    if protocol.split.rule in ("datasets", "shares"):
        changed.append(with_dataset(data, trained, test=0.5))
    for other in changed:
        assert len(matches(protocol, other)) == 1, matches(protocol, other)


def test_what_a_protocol_leaves_open_is_no_deviation():
    protocol = protocol_named("offsets-1")
    data = with_dataset(data_of(protocol), "300w_lp", val=0.3, seed=5)
    more = data.datasets | {"heads": DatasetSpec("synthetic", count=5)}
    data = dataclasses.replace(data, datasets=more, test=(*data.test, "heads"), encoding="jpeg", rows_per_shard=7)
    assert matches(protocol, data) == []


@pytest.mark.parametrize(
    ("reader", "own"), [("300w_lp", "landmarks x 1.4"), ("aflw2000", "landmarks x 1.4"), ("biwi", "projected centre")]
)
def test_a_readers_own_boxes_are_not_a_detectors(reader, own):
    protocol = protocol_named("offsets-1")
    (said,) = matches(protocol, with_dataset(data_of(protocol), reader, boxes=""))
    assert said == f"who draws the boxes of data.datasets.{reader} is {own}, in offsets-1 it is yolov5"


def test_a_second_copy_of_a_split_archive_is_tested_on_whole_unless_it_names_who():
    protocol = protocol_named("offsets-3")
    data = data_of(protocol)
    for named in (data.datasets["biwi"].test_groups, ()):
        copy = dataclasses.replace(data.datasets["biwi"], root="/copy", test_groups=named)
        other = dataclasses.replace(data, datasets=data.datasets | {"copy": copy}, test=("copy",))
        assert bool(named) != any("all of it" in said for said in matches(protocol, other))


@pytest.mark.parametrize(("config", "name"), [("pointing04", "pointing04-people"), ("demo", "rendered-heads")])
def test_the_configurations_that_define_a_protocol_follow_it(config, name):
    spec = load([config])
    assert spec.evaluate.protocol == name and matches(protocol_named(name), spec.data) == []


def variants(value):
    """Values of the same kind that differ, one for every leaf."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            for other in variants(getattr(value, field.name)):
                yield dataclasses.replace(value, **{field.name: other})
    elif isinstance(value, tuple):
        yield (*value, *(value[:1] or ("more",)))
        for i, item in enumerate(value):
            for other in variants(item):
                yield (*value[:i], other, *value[i + 1 :])
    elif isinstance(value, str):
        yield value + "x"
    else:
        yield 1 if value is None else value + 1


@pytest.mark.parametrize("protocol", EVERY, ids=lambda p: p.name)
def test_the_hash_changes_with_every_field_and_with_nothing_else(protocol):
    others = list(variants(protocol))
    assert len(others) >= len(dataclasses.fields(protocol)) + 5
    hashes = [other.hash for other in (protocol, *others)]
    assert len(set(hashes)) == len(hashes) and all(len(h) == 12 and int(h, 16) >= 0 for h in hashes)
    same = dataclasses.replace(protocol, filter_deg=int(protocol.filter_deg), size=float(protocol.size))
    assert same == protocol and same.hash == protocol.hash


def test_the_hash_is_that_of_the_canonical_json():
    import hashlib

    protocol = Protocol("a", (FaceSet("b"),), (FaceSet("c", 3),), 9, Boxes("d", "square"), Split("datasets"), 5, "e")
    sets = [{"faces": n, "fixed": [["count", 0.0]], "reader": name} for name, n in (("b", None), ("c", 3.0))]
    split = {"rule": "datasets", "test_groups": [], "test_images": 0.0, "test_share": 0.0}
    plain = {"boxes": {"scale": 1.0, "shape": "square", "source": "d"}, "filter_deg": 9.0, "name": "a", "size": 5.0}
    plain |= {"source": "e", "split": split, "test": sets[1:], "train": sets[:1]}
    assert protocol.hash == hashlib.sha256(json.dumps(plain, separators=(",", ":")).encode()).hexdigest()[:12]


def test_names_and_hashes_are_unique_and_a_typo_names_the_nearest():
    assert len(ALL) == len(EVERY) == len({protocol.hash for protocol in EVERY})
    with pytest.raises(SpecError, match="there is no protocol 'ehpnt'; did you mean 'ehpnet'?"):
        protocol_named("ehpnt")


def test_the_faces_of_the_video_split_are_all_of_biwi():
    seen, kept = protocol_named("offsets-3").train[0].faces, protocol_named("offsets-3").test[0].faces
    assert seen + kept == protocol_named("offsets-1").test[1].faces == 15677
