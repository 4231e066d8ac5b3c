"""Laws of what a network is shown: the rows of an epoch, each moved by its own draws."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from hpe_core.augment.augment import Augment
from hpe_core.data.batch import FaceData, OwnFaces, PoseBatch
from hpe_core.data.rows import write_shard
from hpe_core.geometry.bins import AngleBins
from hpe_core.spec.training import AugmentSpec
from hpe_core.training import views
from hpe_core.training.place import Place
from hpe_core.training.views import Views
from tests.faces import CROP, face_row

STRETCHED = replace(CROP, shape="stretch")
SPEC = AugmentSpec(turn_deg=20, jitter_px=2, zoom=0.2, photometric="light")


def joined(batches: list[PoseBatch]) -> PoseBatch:
    columns = [name for name, column in vars(batches[0]).items() if column is not None]
    return PoseBatch(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in columns})


@pytest.mark.parametrize("kind", [FaceData, OwnFaces])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_epoch_drawn_at_once_is_that_of_its_rows_in_their_order(tmp_path: Path, kind: type[FaceData], rank: int):
    """Of crops that are stretched by different factors, without which a turn would shear the head."""
    rows = [face_row(i, STRETCHED) for i in range(12)]
    write_shard(tmp_path / "part-00000.parquet", rows, STRETCHED, "raw")
    faces, place = kind([tmp_path / "part-00000.parquet"], landmarks=True), Place(rank=rank, world=2)
    augment = Augment(SPEC, CROP.size, AngleBins.covering(99, 3))
    for epoch, batches in enumerate(Views(faces, augment, 6, 3, place).epochs(0, 2)):
        shown = list(batches)
        given = list(faces.shuffled(6, seed=3, epoch=epoch, rank=rank, world=2))
        assert [len(batch) for batch in shown] == [len(batch) for batch in given] == [3, 3]
        found, whole = joined(shown), joined(given)
        assert whole.scales_B2 is not None and (whole.scales_B2[:, 0] / whole.scales_B2[:, 1]).std() > 0.01
        expected = augment(whole, np.random.default_rng([3, 1 + epoch, rank]))
        for name in ("images_BHWC", "angles_B3", "landmarks_BL3"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("photometric", ["none", "light", "ehpnet", "offsets"])
def test_batches_that_are_augmented_at_once_are_those_that_come_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photometric: Literal["none", "light", "ehpnet", "offsets"]
) -> None:
    """Three batches, two at once and then the last, as on a GPU."""
    write_shard(tmp_path / "part-00000.parquet", [face_row(i, CROP) for i in range(12)], CROP, "raw")
    faces = FaceData([tmp_path / "part-00000.parquet"], landmarks=True)
    augment = Augment(replace(SPEC, photometric=photometric), CROP.size, AngleBins.covering(99, 3))
    seen = []
    for some in (1, 2):
        monkeypatch.setattr(views, "at_once", lambda *_, some=some: some)
        epochs = [list(batches) for batches in Views(faces, augment, 4, 3, Place()).epochs(0, 2)]
        assert [[len(batch) for batch in batches] for batches in epochs] == [[4, 4, 4], [4, 4, 4]]
        seen.append([tensor for batches in epochs for batch in batches for tensor in batch.tensors()])
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))


def test_only_on_a_gpu_and_within_its_memory_are_batches_augmented_at_once() -> None:
    def some(faces: int, size: int, device: str = "cuda", backend: Literal["auto", "albumentations"] = "auto") -> int:
        augment = Augment(replace(SPEC, backend=backend), size, AngleBins.covering(99, 3))
        return views.at_once(faces, augment, Place(torch.device(device)))

    assert (some(128, 112), some(128, 224), some(1024, 224), some(32, 64)) == (8, 2, 1, 98)
    assert some(128, 112, "cpu") == some(128, 112, backend="albumentations") == 1
