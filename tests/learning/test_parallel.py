"""Data-parallel training: two workers make the network that one worker makes of the same batches."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from hpe_core.data.batch import FaceData, OwnFaces, PoseBatch, TrainFaces
from hpe_core.networks.checkpoint import load_net
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import AugmentSpec, OptimSpec, TrainSpec
from hpe_core.training.loop import EpochEnd, fit
from hpe_core.training.place import Place
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
        how = {"seed": seed, "epoch": epoch, "world": 2}
        both = [part.shuffled(batch_size, rank=of, **how) for of, part in enumerate(self.parts)]
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


CASES = {"halves": (1, False), "halves-in-parts": (2, False), "own-rows": (1, True)}  # (accumulate, own)


def train_beside(rank: int, folder: Path) -> None:
    """One of two workers, through all cases: a process takes longer to start than to train."""
    for name, (accumulate, own) in CASES.items():
        spec = dataclasses.replace(SPEC, optim=dataclasses.replace(SPEC.optim, accumulate=accumulate))
        train(rank, 2, spec, folder, folder / name, own)


def spawned(number: int, folder: Path) -> None:
    train_beside(1 + number, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards; networks that one worker made, and below each case's name those of two."""
    made = tmp_path_factory.mktemp("parallel")
    write_heads(made, 40)
    write_heads(made, 8, split="val", first=40)
    for name in ("alone-False", "alone-True", *CASES):
        (made / name).mkdir()
    for own in (False, True):
        train(0, 1, SPEC, made, made / f"alone-{own}", own)
    second = processes.spawn(spawned, args=(made,), nprocs=1, join=False)
    train_beside(0, made)
    while not second.join():
        pass
    return made


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_two_workers_make_what_one_makes(folder, case):
    """Each takes half of every batch, or each has rows of its own."""
    alone, together = folder / f"alone-{CASES[case][1]}", folder / case
    first, second = load_net(alone).net.state_dict(), load_net(together).net.state_dict()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-4), name
    errors = [float((place / "mae").read_text()) for place in (alone, together)]
    assert errors[0] == pytest.approx(errors[1], abs=0.02)
