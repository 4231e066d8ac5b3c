"""Laws of leaks: no picture is trained on in one dataset and tested on in another, by whichever name and reader."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from hpe_core.datasets.base import DatasetError
from hpe_core.datasets.leaks import check_leaks
from hpe_core.datasets.plan import plan_dataset, used_datasets
from hpe_core.datasets.registry import open_source
from hpe_core.spec.data import DatasetSpec, DataSpec
from tests.archives import picture, write_aflw2000
from tests.prediction.asking import save


def table(file: Path, rows: Mapping[str, str], pictures: bool = True) -> DatasetSpec:
    """A table of faces, path -> split, beside its pictures."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "split", "pitch", "yaw", "roll", "x1", "y1", "x2", "y2"])
        writer.writerows([path, split, 1, 2, 3, 10, 10, 60, 60] for path, split in rows.items())
    for number, path in enumerate(rows if pictures else ()):
        save(file.parent / path, picture(number))
    return DatasetSpec("manifest", root=str(file))


def look(datasets: Mapping[str, DatasetSpec], train: Sequence[str], test: Sequence[str]) -> None:
    data = DataSpec(dict(datasets), tuple(train), tuple(test))
    sources = {name: open_source(datasets[name]) for name in used_datasets(data)}
    check_leaks({name: plan_dataset(name, source, data) for name, source in sources.items()}, sources)


LEARNT = {"a.png": "train", "b.png": "train", "im/c.png": "val"}


@pytest.mark.parametrize(
    ("tested", "leak"),
    [
        (["d.png"], ""),
        (["d.png", "b.png"], "b.png"),
        (["d.png", "im/c.png"], "c.png"),
        (["./im//../b.png"], "b.png"),
        (["link.png"], "b.png"),
        (["b.PNG"], "b.png"),
    ],
)
def test_a_picture_of_two_tables_in_one_folder_is_refused_if_trained_and_tested_on(tmp_path, tested, leak):
    learnt = table(tmp_path / "train.csv", LEARNT)
    save(tmp_path / "d.png", picture(9))
    (tmp_path / "link.png").symlink_to("b.png")
    asked = table(tmp_path / "test.csv", dict.fromkeys(tested, "test"), pictures=False)
    said = rf"dataset 'asked' is tested on {tmp_path}\S*/{leak}, which dataset 'learnt' is trained on, and"
    for order in (("learnt", "asked"), ("asked", "learnt")):
        datasets = {name: {"learnt": learnt, "asked": asked}[name] for name in order}
        with pytest.raises(DatasetError, match=said) if leak else nullcontext():
            look(datasets, ["learnt"], ["asked"])


def test_all_that_are_shared_are_counted_and_tests_of_both_may_share(tmp_path):
    learnt = table(tmp_path / "one.csv", {**LEARNT, "d.png": "test"})
    same = table(tmp_path / "two.csv", {**LEARNT, "d.png": "test"}, pictures=False)
    look({"one": learnt, "two": same}, ["one", "two"], ["one", "two"])
    turned = table(tmp_path / "two.csv", {**dict.fromkeys(LEARNT, "test"), "e.png": "train", "f.png": "val"})
    with pytest.raises(DatasetError, match=r"'two' is tested on .*, and so it is with 3 of its 3 test faces"):
        look({"one": learnt, "two": turned}, ["one", "two"], ["one", "two"])
    elsewhere = table(tmp_path / "other" / "two.csv", dict.fromkeys(LEARNT, "test"))
    look({"one": learnt, "two": elsewhere}, ["one"], ["two"])


def test_readers_of_other_formats_are_compared_too(tmp_path):
    for number in range(3):
        write_aflw2000(tmp_path / "archive", f"image{number:05d}", seed=number)
    archive = DatasetSpec("aflw2000", root=str(tmp_path / "archive"))
    rows = {"archive/image00001.jpg": "train", "x.png": "train", "y.png": "val"}
    for path in ("x.png", "y.png"):
        save(tmp_path / path, picture(7))
    learnt = table(tmp_path / "manifest.csv", rows, pictures=False)
    with pytest.raises(DatasetError, match=r"'wild' is tested on \S*/image00001.jpg, which dataset 'learnt'"):
        look({"learnt": learnt, "wild": archive}, ["learnt"], ["wild"])
