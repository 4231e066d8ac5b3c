"""Laws of what a network is shown: the rows of an epoch, each moved by its own draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpe_core.augment.augment import Augment
from hpe_core.data.batch import FaceData, OwnFaces, PoseBatch
from hpe_core.data.rows import write_shard
from hpe_core.geometry.bins import AngleBins
from hpe_core.spec.training import AugmentSpec
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
