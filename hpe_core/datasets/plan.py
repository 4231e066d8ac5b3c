"""From a dataset's listing to the jobs of the shards stage: sort, thin, drop repeats, split by person, cut.

No picture is opened, and the order in which the disk lists files decides nothing. Memory hardly grows with a dataset:
its sorted faces lie in a file, and the plan holds a few numbers of each (docs/large.md). A dataset that grows keeps its
shards: a job's hash covers its own faces and what decides them, and where a shard ends is decided by the names of the
faces around that place (`cut`).

A dataset may say itself who is tested on (`FaceRef.split`, from a manifest). That decides, for whole groups. Only val
is then still drawn, from the train groups, where the dataset names none: published splits know train and test, and
neither may choose a checkpoint. A dataset that is only tested on contributes what it calls test.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import compress, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpe_core.datasets.base import SCHEMA_VERSION, DatasetError, FaceRef, Source, naming, place_of, share_of
from hpe_core.datasets.faces import BLOCK, FaceFile, in_blocks, in_order, read_line
from hpe_core.datasets.files import printable
from hpe_core.errors import nearest
from hpe_core.spec.data import DatasetSpec, DataSpec
from hpe_core.system.files import json_sha256

CUT_SEED = 1  # not that of any split by chance: where a shard ends has nothing to do with who is in it
RUNS = 100  # shards whose faces' states are asked for at once
SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST, NOWHERE = range(4)
NAMED = 40  # groups of a dataset that are all shown to whoever has misspelt one
Codes = NDArray[np.uint8]  # places in SPLITS, or NOWHERE
Places = NDArray[np.uint64]  # `place_of`, which stands for a name: who shares it shares the split as well


@dataclass(frozen=True)
class Job:
    """One shard to be: the faces of one split in order. `hash` covers everything that decides its bytes."""

    dataset: str
    split: str
    part: int
    count: int
    hash: str
    file: FaceFile = field(compare=False, repr=False)
    start: int = field(compare=False, repr=False)  # byte of the file

    @property
    def refs(self) -> tuple[FaceRef, ...]:
        """The faces, read from the file."""
        return read_line(self.file.path, self.start)

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


class Listing(NamedTuple):
    """A dataset's faces in order: N of them in a file, and a few numbers of each."""

    file: FaceFile
    ids: Places  # (N,) of sample ids, by which a part of the faces is drawn
    groups: Places  # (N,)
    given: Codes  # (N,) the split that the dataset prescribes
    again: NDArray[np.bool_]  # (N,) whether the face before has the same sample id
    names: set[str]  # of groups, NAMED + 1 at most
    ends: tuple[str, str]  # the first and the last name of a group

    def chosen(self, flags: NDArray[np.bool_]) -> Iterator[FaceRef]:
        """The flagged faces, in order."""
        return compress(self.file, flags)


def used_datasets(data: DataSpec) -> list[str]:
    """Names of the datasets that are trained or tested on, as ordered in the configuration."""
    return [name for name in data.datasets if name in data.train or name in data.test]


def plan_dataset(name: str, source: Source, data: DataSpec, folder: Path | None = None) -> DatasetPlan:
    """List, split and cut one dataset. Raises DatasetError where it or a split is empty, or a named group not there.

    The jobs' faces lie in a file of `folder` (None: of temporary files) as long as somebody refers to one of the jobs.
    """
    spec = source.spec
    with naming(name):
        listing = listed(source, folder)
    if not len(listing.groups):
        where = f" in {printable(spec.root)}" if spec.root else ""
        raise DatasetError(f"dataset '{name}' is empty: the reader {spec.reader} finds no face{where}")
    groups = np.unique(listing.groups)
    _check_groups(name, groups, listing, spec)
    given = _given_splits(name, groups, listing, spec)
    wanted = ("train", "val") * (name in data.train) + ("test",) * (name in data.test)
    chosen = _thinned(listing.ids, spec)
    present = np.bincount(_which(groups, listing.groups[chosen]), minlength=len(groups)) > 0
    of_group = _split_groups(groups, present, spec, wanted, given)
    of_face = np.where(chosen, of_group[_which(groups, listing.groups)], np.uint8(NOWHERE))
    again = _repeated(listing.again, chosen)
    counts = np.bincount(of_face[~again], minlength=NOWHERE + 1)
    for split in wanted:
        if not counts[SPLITS.index(split)]:
            fix = f"name some in data.datasets.{name}.{split}_groups"
            if (given != NOWHERE).any() and (split != "val" or (given == VAL).any()):
                fix = "the dataset itself says which split a face belongs to"
            elif split in ("val", "test"):
                fix += f" or set data.datasets.{name}.{split} (now {getattr(spec, split):g})"
            none = f"none of its {len(groups)} groups ({len(of_face)} faces) falls into it"
            raise DatasetError(f"dataset '{name}' has an empty {split} set: {none}; {fix}")
    file, jobs = FaceFile(folder), list[Job]()
    with naming(name), file.writing() as write:
        for split in wanted:
            runs = cut(listing.chosen((of_face == SPLITS.index(split)) & ~again), data.rows_per_shard)
            for part, (refs, states) in enumerate(_with_states(source, runs)):
                jobs.append(Job(name, split, part, len(refs), _job_hash(spec, states, data, refs), file, write(refs)))
    repeated = again & np.isin(of_face, [SPLITS.index(split) for split in wanted])
    splits = (SPLITS[code] for code in of_face[repeated])
    seen_before = tuple(zip(splits, listing.chosen(repeated), strict=True))
    left = sorted(zip(SPLITS, counts.tolist(), strict=False))  # those of no split come last
    unused = {split: faces for split, faces in left if faces and split not in wanted}
    return DatasetPlan(tuple(jobs), wanted, seen_before, len(groups), unused)


def listed(source: Source, folder: Path | None) -> Listing:
    """Every face that the source lists, in order. Raises DatasetError."""
    file, names, seed = FaceFile(folder), set[str](), source.spec.seed
    ids, groups, given, again = array("Q"), array("Q"), bytearray(), bytearray()
    before = first = last = None
    with file.writing() as write:
        for block in in_blocks(in_order(source.refs()), BLOCK):
            write(block)
            for ref in block:
                ids.append(place_of(ref.sample_id, seed) if source.spec.count else 0)
                groups.append(place_of(ref.group, seed))
                given.append(SPLITS.index(ref.split) if ref.split else NOWHERE)
                again.append(ref.sample_id == before)
                before = ref.sample_id
                first = ref.group if first is None else min(first, ref.group)
                last = ref.group if last is None else max(last, ref.group)
                if len(names) <= NAMED:
                    names.add(ref.group)
    numbers = np.frombuffer(ids, np.uint64), np.frombuffer(groups, np.uint64)
    marks = np.frombuffer(given, np.uint8), np.frombuffer(again, np.bool_)
    return Listing(file, *numbers, *marks, names, (first or "", last or ""))


def cut(refs: Iterable[FaceRef], most: int) -> Iterator[list[FaceRef]]:
    """Sorted faces in runs of at most `most`; all but the last hold at least half of that.

    Cuts at every `most`-th face would move with each face that is added before them. Here the next run begins, of all
    faces at which it might, with the one whose name has the smallest hash: runs on both sides of a change soon agree
    again on where they begin.
    """
    least, hashes, held = (most + 1) // 2, list[float](), list[FaceRef]()
    for ref in refs:
        held.append(ref)
        hashes.append(share_of(ref.sample_id, CUT_SEED))
        if len(held) > most:
            end = min(range(least, most + 1), key=hashes.__getitem__)
            yield held[:end]
            del held[:end], hashes[:end]
    yield held


def _with_states(source: Source, runs: Iterator[list[FaceRef]]) -> Iterator[tuple[list[FaceRef], list[str]]]:
    """Each run with its faces' states. A source is asked for those of many runs at once: it may scan a table."""
    for some in in_blocks(runs, RUNS):
        states = iter(source.states([ref for run in some for ref in run]))
        yield from ((run, list(islice(states, len(run)))) for run in some)


def _which(groups: Places, of: Places) -> NDArray[np.intp]:
    """Where in the sorted `groups` each of these is."""
    return np.searchsorted(groups, of)


def _places(names: Iterable[str], spec: DatasetSpec) -> Places:
    return np.array([place_of(name, spec.seed) for name in names], np.uint64)


def _given_splits(name: str, groups: Places, listing: Listing, spec: DatasetSpec) -> Codes:
    """(G,) each group's split where the dataset itself prescribes it. Raises DatasetError for two."""
    said = np.zeros((NOWHERE, len(groups)), np.bool_)
    for code in range(NOWHERE):
        said[code, _which(groups, listing.groups[listing.given == code])] = True
    torn = said.sum(axis=0) > 1
    first: dict[str, str] = {}
    for ref in listing.chosen(torn[_which(groups, listing.groups)]) if torn.any() else ():
        if ref.split and first.setdefault(ref.group, ref.split) != ref.split:
            said_twice = f"dataset '{name}' puts the group '{ref.group}' into {first[ref.group]} and {ref.split}"
            raise DatasetError(f"{said_twice}: a group is a person and stays on one side")
    for key, code, named in (("test_groups", TEST, spec.test_groups), ("val_groups", VAL, spec.val_groups)):
        if named and said.any() and (code == TEST or said[VAL].any()):
            raise DatasetError(f"dataset '{name}' says itself who is in {SPLITS[code]}, so {key} cannot; leave it out")
    return np.where(said.any(axis=0), said.argmax(axis=0), NOWHERE).astype(np.uint8)


def _split_groups(
    groups: Places, present: NDArray[np.bool_], spec: DatasetSpec, wanted: tuple[str, ...], given: Codes
) -> Codes:
    """(G,) each group's split. One that got nobody takes the group drawn nearest to it from the fullest split."""
    trained_on = "train" in wanted
    if (given != NOWHERE).any():
        spec = replace(spec, test=0.0, val=0.0 if (given == VAL).any() else spec.val)
    drawn = present & ((given == NOWHERE) | (trained_on & (given == TRAIN)))
    splits = np.where(drawn, _drawn(groups, spec, trained_on=trained_on), given).astype(np.uint8)
    splits[~present] = NOWHERE
    named = np.isin(groups, _places({*spec.test_groups, *spec.val_groups}, spec))
    shares = {TEST: 0.0 if spec.test_groups else spec.test, VAL: 0.0 if spec.val_groups else spec.val, TRAIN: 1.0}
    for code, share in shares.items():
        # Whether or not the test faces are asked for: who is trained on must not depend on the list of test sets.
        if not trained_on or share == 0 or (splits == code).any():
            continue
        counts = np.bincount(splits[drawn & ~named], minlength=NOWHERE)
        fullest = max(sorted(range(NOWHERE), key=SPLITS.__getitem__), key=counts.__getitem__)
        donors = np.flatnonzero(drawn & (splits == fullest) & ~named)  # in the order of their places
        if len(donors) > 1:
            splits[donors[-1 if code == TRAIN else 0]] = code
    return splits


def _drawn(groups: Places, spec: DatasetSpec, *, trained_on: bool) -> Codes:
    """(G,) train, val or test for whole groups, by chance; of a dataset that is never trained on the people that
    test_groups names are test, and without them all."""
    share = groups / 2**64
    splits = np.full(len(groups), TRAIN if trained_on or spec.test_groups else TEST, np.uint8)
    if trained_on:
        test = 0.0 if spec.test_groups else spec.test
        splits[share - test < (0.0 if spec.val_groups else spec.val)] = VAL
        splits[share < test] = TEST
        splits[np.isin(groups, _places(spec.val_groups, spec))] = VAL
    splits[np.isin(groups, _places(spec.test_groups, spec))] = TEST
    return splits


def _thinned(ids: Places, spec: DatasetSpec) -> NDArray[np.bool_]:
    """(N,) `count` of an archive's faces, drawn by hash: from everybody, not from the first folder."""
    if not 0 < spec.count < len(ids):
        return np.ones(len(ids), np.bool_)
    chosen = np.zeros(len(ids), np.bool_)
    chosen[np.argsort(ids, kind="stable")[: spec.count]] = True
    return chosen


def _repeated(again: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N,) the chosen faces whose sample id an earlier chosen face has."""
    found = np.zeros(len(again), np.bool_)
    if again.any():
        ids = np.cumsum(~again)[chosen]
        found[chosen] = np.diff(ids, prepend=0) == 0
    return found


def _check_groups(name: str, groups: Places, listing: Listing, spec: DatasetSpec) -> None:
    """A misspelt group would put people meant for testing into training, and nobody would notice."""
    for key, named in (("val_groups", spec.val_groups), ("test_groups", spec.test_groups)):
        for group, place in zip(named, _places(named, spec), strict=True):
            if place not in groups:
                close = nearest(group, sorted(listing.names)) if len(groups) <= NAMED else ""
                said = f"{key} names '{group}', which is none of the {len(groups)} groups"
                raise DatasetError(f"dataset '{name}': {said} from {listing.ends[0]} to {listing.ends[1]}{close}")


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
    return json_sha256(recipe)
