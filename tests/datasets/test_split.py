"""Who is trained on, who validates, who is tested on: whole groups, by name or by chance, each face once."""

import dataclasses
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.datasets.base import FaceRef, place_of, share_of
from hpe_core.datasets.plan import plan_dataset
from hpe_core.spec.data import DatasetSpec, DataSpec


def split_of(group: str, spec: DatasetSpec) -> str:
    place, first = share_of(group, spec.seed), 0.0 if spec.test_groups else spec.test
    if group in (*spec.test_groups, *spec.val_groups):
        return "test" if group in spec.test_groups else "val"
    return "test" if place < first else "val" if place - first < (0.0 if spec.val_groups else spec.val) else "train"


@settings(max_examples=40)
@given(
    st.sets(st.integers(0, 10**6), min_size=30, max_size=60),
    st.integers(0, 9),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.sampled_from([0.0, 0.2]),
)
def test_a_group_falls_where_its_hash_says(numbers, seed, test, val):
    """Named groups win; then the first `test` of all places is test, the next `val` val, as far as nobody is named."""
    groups = sorted(f"g{number}" for number in numbers)
    named: tuple[list[str], list[str]]
    for named in (([], []), (groups[:1], []), ([], groups[1:3]), (groups[:1], groups[1:3])):
        spec = DatasetSpec("synthetic", count=1, seed=seed, test=test, val=val)
        spec = dataclasses.replace(spec, val_groups=tuple(named[0]), test_groups=tuple(named[1]))
        data = DataSpec({"heads": spec}, ("heads",), ("heads",), rows_per_shard=7)
        spec = dataclasses.replace(spec, count=0)
        source: Any = SimpleNamespace(spec=spec, states=lambda asked: [""] * len(asked))
        source.refs = lambda: [FaceRef(group, group, "") for group in groups]

        wanted = {group: split_of(group, spec) for group in groups}
        if {*wanted.values()} == {"train", "val", "test"}:
            plan = plan_dataset("heads", source, data)
            assert {ref.group: job.split for job in plan.jobs for ref in job.refs} == wanted


def planned_groups(spec: DatasetSpec, groups: list[str], *, trained: bool = True) -> dict[str, str]:
    """Group -> split of a source of one face each, which is tested on and perhaps trained on."""
    source: Any = SimpleNamespace(spec=spec, states=lambda asked: [""] * len(asked))
    source.refs = lambda: [FaceRef(group, group, "") for group in groups]
    data = DataSpec({"heads": spec, "other": spec}, ("heads",) if trained else ("other",), ("heads",))
    plan = plan_dataset("heads", source, data)
    assert sum(plan.unused.values()) == len(groups) - sum(job.count for job in plan.jobs)
    return {ref.group: job.split for job in plan.jobs for ref in job.refs}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=30), st.integers(0, 12))
def test_a_sample_id_is_planned_once_and_every_other_time_told(listed, count):
    """The first of a name, in the order of faces, is a face; of `count` chosen faces each is one or the other."""
    refs = [FaceRef(f"face{name}", "all", f"{key}.jpg") for name, key in listed]
    spec = DatasetSpec("aflw2000", count=count)
    source: Any = SimpleNamespace(spec=spec, states=lambda asked: [""] * len(asked), refs=lambda: refs)
    plan = plan_dataset("it", source, DataSpec({"it": spec, "other": spec}, ("other",), ("it",)))
    kept = [ref for job in plan.jobs for ref in job.refs]
    told, first = [ref for _, ref in plan.repeated], {ref.sample_id: ref for ref in kept}
    assert len(first) == len(kept) and all(first[ref.sample_id] <= ref for ref in told)
    assert len(kept) + len(told) == min(count or len(refs), len(refs))


@given(st.sets(st.integers(0, 10**6), min_size=4, max_size=40), st.integers(0, 3), st.integers(0, 9))
def test_whom_a_dataset_names_for_its_test_is_tested_on_and_nobody_else(numbers, few, seed):
    """Whether or not it is trained on: else AFLW beside a training on AFLW2000 would be tested on all that was trained
    on, though the people named are others."""
    groups = sorted(f"g{number}" for number in numbers)
    spec = DatasetSpec("aflw", seed=seed, val=0.1, test=0.3, test_groups=tuple(groups[:few]))
    alone = planned_groups(spec, groups, trained=False)
    assert alone == dict.fromkeys(groups[:few] or groups, "test")
    if 0 < few < len(groups) - 1:
        beside = planned_groups(spec, groups)
        assert alone == {group: split for group, split in beside.items() if split == "test"}


@settings(max_examples=15)
@given(st.sets(st.integers(0, 10**6), min_size=8, max_size=40), st.integers(0, 9))
def test_a_split_that_got_nobody_takes_the_group_that_is_drawn_nearest_to_it(numbers, seed):
    """In the order of their places the first is tested on and the next validates; where all are tested on, the first
    validates and the last is trained on."""
    groups = sorted((f"g{number}" for number in numbers), key=lambda group: place_of(group, seed))
    few = planned_groups(DatasetSpec("aflw2000", seed=seed, test=1e-9, val=1e-9), groups)
    assert [few[group] for group in groups] == ["test", "val", *["train"] * (len(groups) - 2)]
    most = planned_groups(DatasetSpec("aflw2000", seed=seed, test=1 - 1e-9, val=1e-10), groups)
    assert [most[group] for group in groups] == ["val", *["test"] * (len(groups) - 2), "train"]


@settings(max_examples=15)
@given(st.integers(1, 60), st.integers(0, 9))
def test_some_of_an_archives_faces_are_those_with_the_smallest_places_whoever_they_show(count, seed):
    ids = [f"{number:04d}" for number in range(60)]
    spec = DatasetSpec("aflw2000", seed=seed, count=count)
    data = DataSpec({"heads": spec, "other": spec}, ("other",), ("heads",))
    source: Any = SimpleNamespace(spec=spec, states=lambda asked: [""] * len(asked))
    source.refs = lambda: [FaceRef(name, name[:3], "") for name in ids]
    found = {ref.sample_id for job in plan_dataset("heads", source, data).jobs for ref in job.refs}
    assert found == set(sorted(ids, key=lambda name: place_of(name, seed))[:count])
