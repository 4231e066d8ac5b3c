"""From a dataset's listing to the jobs of the shards stage: sort, thin, drop repeats, split by person, cut.

No picture is opened, and the order in which the disk lists files decides nothing. A dataset that grows keeps its
shards: a job's hash covers its own faces and what decides them, and where a shard ends is decided by the names of the
faces around that place (`cut`).

A dataset may say itself who is tested on (`FaceRef.split`, from a manifest). That decides, for whole groups. Only val
is then still drawn, from the train groups, where the dataset names none: published splits know train and test, and
neither may choose a checkpoint. A dataset that is only tested on contributes what it calls test.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from hpe_core.datasets.base import SCHEMA_VERSION, DatasetError, FaceRef, Source, naming, share_of, split_of
from hpe_core.datasets.files import printable
from hpe_core.errors import nearest
from hpe_core.spec.data import DatasetSpec, DataSpec

CUT_SEED = 1  # not that of any split by chance: where a shard ends has nothing to do with who is in it


@dataclass(frozen=True)
class Job:
    """One shard to be: the faces of one split in order. `hash` covers everything that decides its bytes."""

    dataset: str
    split: str
    part: int
    refs: tuple[FaceRef, ...]
    hash: str

    @property
    def path(self) -> str:
        """Of the shard, below the stage's folder."""
        return f"{self.dataset}.{self.split}/part-{self.part:05d}.parquet"


@dataclass(frozen=True)
class DatasetPlan:
    """A dataset split by person and cut into jobs."""

    jobs: tuple[Job, ...]
    wanted: tuple[str, ...]  # the splits that are built
    repeated: tuple[tuple[str, FaceRef], ...]  # (split, face) of every sample id that was seen before
    groups: int
    unused: dict[str, int]  # faces of splits that nobody asked for


def used_datasets(data: DataSpec) -> list[str]:
    """Names of the datasets that are trained or tested on, as ordered in the configuration."""
    return [name for name in data.datasets if name in data.train or name in data.test]


def wanted_splits(name: str, data: DataSpec) -> tuple[str, ...]:
    return (("train", "val") if name in data.train else ()) + (("test",) if name in data.test else ())


def plan_dataset(name: str, source: Source, data: DataSpec) -> DatasetPlan:
    """List, split and cut one dataset. Raises DatasetError where it or a split is empty, or a named group not there."""
    spec = source.spec
    with naming(name):
        listed = sorted(source.refs())
    if not listed:
        where = f" in {printable(spec.root)}" if spec.root else ""
        raise DatasetError(f"dataset '{name}' is empty: the reader {spec.reader} finds no face{where}")
    groups = sorted({ref.group for ref in listed})
    _check_groups(name, groups, spec)
    given = _given_splits(name, listed, spec)
    wanted = wanted_splits(name, data)
    chosen = _thinned(listed, spec)
    split_by_group = _split_groups({ref.group for ref in chosen}, spec, wanted, given)
    by_split: dict[str, list[FaceRef]] = {}
    repeated, seen = [], set()
    for ref in chosen:
        split = split_by_group[ref.group]
        if ref.sample_id in seen:
            repeated.append((split, ref))
        else:
            seen.add(ref.sample_id)
            by_split.setdefault(split, []).append(ref)
    for split in wanted:
        if split not in by_split:
            fix = f"name some in data.datasets.{name}.{split}_groups"
            if given and (split != "val" or "val" in given.values()):
                fix = "the dataset itself says which split a face belongs to"
            elif split in ("val", "test"):
                fix += f" or set data.datasets.{name}.{split} (now {getattr(spec, split):g})"
            none = f"none of its {len(groups)} groups ({len(listed)} faces) falls into it"
            raise DatasetError(f"dataset '{name}' has an empty {split} set: {none}; {fix}")
    faces = [ref for split in wanted for ref in by_split[split]]
    with naming(name):
        states = dict(zip(faces, source.states(faces), strict=True))
    jobs = []
    for split in wanted:
        for part, some in enumerate(cut(by_split[split], data.rows_per_shard)):
            own = [states[ref] for ref in some]
            jobs.append(Job(name, split, part, tuple(some), _job_hash(spec, own, data, some)))
    return DatasetPlan(
        jobs=tuple(jobs),
        wanted=wanted,
        repeated=tuple((split, ref) for split, ref in repeated if split in wanted),
        groups=len(groups),
        unused={split: len(some) for split, some in sorted(by_split.items()) if split not in wanted},
    )


def cut(refs: Sequence[FaceRef], most: int) -> Iterator[Sequence[FaceRef]]:
    """Sorted faces in runs of at most `most`; all but the last hold at least half of that.

    Cuts at every `most`-th face would move with each face that is added before them. Here the next run begins, of all
    faces at which it might, with the one whose name has the smallest hash: runs on both sides of a change soon agree
    again on where they begin.
    """
    least = (most + 1) // 2
    hashes = [share_of(ref.sample_id, CUT_SEED) for ref in refs]
    start = 0
    while len(refs) - start > most:
        end = min(range(start + least, start + most + 1), key=lambda place: hashes[place])
        yield refs[start:end]
        start = end
    yield refs[start:]


def _given_splits(name: str, listed: list[FaceRef], spec: DatasetSpec) -> dict[str, str]:
    """Each group's split where the dataset itself prescribes it. Raises DatasetError where that is contradicted."""
    given: dict[str, str] = {}
    for ref in listed:
        if ref.split and given.setdefault(ref.group, ref.split) != ref.split:
            said = f"dataset '{name}' puts the group '{ref.group}' into {given[ref.group]} and {ref.split}"
            raise DatasetError(f"{said}: a group is a person and stays on one side")
    for key, split, named in (("test_groups", "test", spec.test_groups), ("val_groups", "val", spec.val_groups)):
        if named and given and (split == "test" or "val" in given.values()):
            raise DatasetError(f"dataset '{name}' says itself who is in {split}, so {key} cannot; leave it out")
    return given


def _split_groups(
    groups: set[str], spec: DatasetSpec, wanted: tuple[str, ...], given: dict[str, str]
) -> dict[str, str]:
    """Each group's split. One that got nobody takes the group drawn nearest to it from the fullest split."""
    trained_on = "train" in wanted
    if given:
        spec = replace(spec, test=0.0, val=0.0 if "val" in given.values() else spec.val)
    drawn = {group for group in groups if group not in given or (trained_on and given[group] == "train")}
    splits = {
        group: split_of(group, spec, trained_on=trained_on) if group in drawn else given[group] for group in groups
    }
    named = {*spec.test_groups, *spec.val_groups}
    shares = {"test": 0.0 if spec.test_groups else spec.test, "val": 0.0 if spec.val_groups else spec.val, "train": 1.0}
    for split, share in shares.items():
        # Whether or not the test faces are asked for: who is trained on must not depend on the list of test sets.
        if not trained_on or share == 0 or split in splits.values():
            continue
        taken = [splits[group] for group in drawn]
        fullest = max(sorted(set(taken)), key=taken.count, default="")
        donors = [group for group in drawn if splits[group] == fullest and group not in named]
        if len(donors) > 1:
            order = sorted(donors, key=lambda group: (share_of(group, spec.seed), group))
            splits[order[-1 if split == "train" else 0]] = split
    return splits


def _thinned(listed: list[FaceRef], spec: DatasetSpec) -> list[FaceRef]:
    """`count` of an archive's faces, drawn by hash: from everybody, not from the first folder."""
    if not 0 < spec.count < len(listed):
        return listed
    return sorted(sorted(listed, key=lambda ref: (share_of(ref.sample_id, spec.seed), ref))[: spec.count])


def _check_groups(name: str, groups: list[str], spec: DatasetSpec) -> None:
    """A misspelt group would put people meant for testing into training, and nobody would notice."""
    known = set(groups)
    for key, named in (("val_groups", spec.val_groups), ("test_groups", spec.test_groups)):
        for group in named:
            if group not in known:
                close = nearest(group, groups) if len(groups) <= 40 else ""
                said = f"{key} names '{group}', which is none of the {len(groups)} groups"
                raise DatasetError(f"dataset '{name}': {said} from {groups[0]} to {groups[-1]}{close}")


def _job_hash(spec: DatasetSpec, states: Sequence[str], data: DataSpec, refs: Sequence[FaceRef]) -> str:
    """The root is left out: an archive may move, and what its files are is in the faces' states."""
    recipe = {
        "version": SCHEMA_VERSION,
        "reading": [spec.reader, asdict(spec.convention), spec.links],
        "states": states,
        "crop": asdict(data.crop),
        "encoding": data.encoding,
        "limit_deg": data.limit_deg,
        "refs": [[ref.sample_id, ref.group, ref.key] for ref in refs],
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
