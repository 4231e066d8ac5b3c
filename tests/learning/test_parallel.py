"""Data-parallel training: two workers make the network that one worker makes of the same batches."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from hpe_core.data.batch import FaceData, OwnFaces, PoseBatch, TrainFaces
from hpe_core.learning.checkpoint import load_net
from hpe_core.learning.loop import EpochEnd, Place, fit
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import AugmentSpec, OptimSpec, TrainSpec
from tests.faces import CROP, write_heads

# Without batch statistics, dropout or random augmentation the two must agree to rounding. The second head has no
# gradient (hard_loss ce), which data-parallel training has to be told.
SPEC = TrainSpec(
    net=NetSpec("test_convnext", bin_widths=(3.0, 9.0)),
    optim=OptimSpec(epochs=2, batch_size=16, lr=1e-3, clip_norm=1.0),
    augment=AugmentSpec(flip=0.0, photometric="none"),
    hard_loss="ce",
)


class Joined:
    """For one worker: the batches that two workers with rows of their own see together. A `TrainFaces`."""

    def __init__(self, files: list[Path]) -> None:
        self.parts = [OwnFaces(files), OwnFaces(files)]

    def __len__(self) -> int:
        return len(self.parts[0])

    def steps(self, batch_size: int) -> int:
        return self.parts[0].steps(batch_size)

    def shuffled(self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> Iterator[PoseBatch]:
        assert (rank, world) == (0, 1)
        both = [
            part.shuffled(batch_size, seed=seed, epoch=epoch, rank=of, world=2) for of, part in enumerate(self.parts)
        ]
        for first, second in zip(*both, strict=True):
            names = ("images_BHWC", "angles_B3", "scales_B2")
            yield PoseBatch(*[torch.cat([getattr(first, name), getattr(second, name)]) for name in names])


def train(rank: int, world: int, spec: TrainSpec, folder: Path, out: Path, own: bool = False) -> None:
    """One worker; rank 0 leaves its network and its last validation error."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=world)
    files = {split: sorted((folder / f"heads.{split}").glob("*.parquet")) for split in ("train", "val")}

    def keep(end: EpochEnd) -> None:
        if rank == 0:
            end.save(out)
            (out / "mae").write_text(repr(end.metrics["val/mae"]))

    place = Place(rank=rank, world=world)
    faces: TrainFaces = FaceData(files["train"])
    if own:
        faces = OwnFaces(files["train"]) if world > 1 else Joined(files["train"])
    fit(spec, CROP, faces, FaceData(files["val"]), place=place, on_epoch=keep)
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("accumulate", "own"), [(1, False), (2, False), (1, True)])
def test_two_workers_make_what_one_makes(tmp_path: Path, accumulate: int, own: bool) -> None:
    """Each takes half of every batch, or each has rows of its own (`own`)."""
    write_heads(tmp_path, 72)
    write_heads(tmp_path, 24, split="val", first=72)
    alone, together = tmp_path / "one", tmp_path / "two"
    alone.mkdir()
    together.mkdir()
    train(0, 1, SPEC, tmp_path, alone, own)
    spec = dataclasses.replace(SPEC, optim=dataclasses.replace(SPEC.optim, accumulate=accumulate))
    processes.spawn(train, args=(2, spec, tmp_path, together, own), nprocs=2)
    first, second = load_net(alone).net.state_dict(), load_net(together).net.state_dict()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-4), name
    errors = [float((folder / "mae").read_text()) for folder in (alone, together)]
    assert errors[0] == pytest.approx(errors[1], abs=0.02)
