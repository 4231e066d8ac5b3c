"""A picture that one dataset is tested on and another is trained on: two tables may lie in one folder.

Whether two archives are the same one, their readers say (`Reader.shares_faces`). Here the pictures themselves are
compared, by where they lie, of datasets whose folders are one, or lie in one another.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import compress, permutations

import numpy as np

from hpe_core.datasets.base import DatasetError, Source
from hpe_core.datasets.files import Archive, printable, spelled
from hpe_core.datasets.plan import DatasetPlan


def check_leaks(plans: Mapping[str, DatasetPlan], sources: Mapping[str, Source]) -> None:
    """Raises DatasetError that names a picture of a test set with which another dataset trains, or chooses. No picture
    is opened, and 8 bytes of each are held."""
    archives = {name: source.reader for name, source in sources.items() if isinstance(source.reader, Archive)}
    for (name, tested), (other, trained) in permutations(archives.items(), 2):
        if not _meet(tested, trained):
            continue
        used = _places(trained, plans[other], "train", "val")
        shared = np.isin(_hashes(_places(tested, plans[name], "test")), _hashes(used))
        if shared.any():
            first = next(compress(_places(tested, plans[name], "test"), shared))
            said = f"dataset '{name}' is tested on {printable(first)}, which dataset '{other}' is trained on"
            raise DatasetError(f"{said}, and so it is with {shared.sum():,} of its {len(shared):,} test faces")


def _meet(one: Archive, other: Archive) -> bool:
    """Whether a file can lie in the folders of both."""
    first, second = os.path.realpath(one.folder), os.path.realpath(other.folder)
    return os.path.commonpath([first, second]) in (first, second)


def _places(reader: Archive, plan: DatasetPlan, *splits: str) -> Iterator[str]:
    """Where the picture of each face of these splits lies, behind all links."""
    for job in plan.jobs:
        for ref in job.refs if job.split in splits else ():
            for name in reader.files_of(ref)[:1]:
                path = os.path.join(reader.folder, name)
                yield os.path.realpath(spelled(path, os.path.exists))


def _hashes(places: Iterator[str]) -> np.ndarray:
    return np.fromiter(map(hash, places), np.int64)
