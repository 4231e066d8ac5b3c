"""Data-parallel training: two workers make the network that one worker makes of the same batches."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from hpe_core.batch import FaceData
from hpe_core.checkpoint import load_net
from hpe_core.loop import EpochEnd, Place, fit
from hpe_core.spec import AugmentSpec, NetSpec, OptimSpec, TrainSpec
from tests.faces import CROP, write_heads

# Without batch statistics, dropout or random augmentation the two must agree to rounding. The second head has no
# gradient (hard_loss ce), which data-parallel training has to be told.
SPEC = TrainSpec(
    net=NetSpec("test_convnext", bin_widths=(3.0, 9.0)),
    optim=OptimSpec(epochs=2, batch_size=16, lr=1e-3, clip_norm=1.0),
    augment=AugmentSpec(flip=0.0, photometric="none"),
    hard_loss="ce",
)


def train(rank: int, world: int, spec: TrainSpec, folder: Path, out: Path) -> None:
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
    fit(spec, CROP, FaceData(files["train"]), FaceData(files["val"]), place=place, on_epoch=keep)
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_workers_make_what_one_makes(tmp_path: Path, accumulate: int) -> None:
    write_heads(tmp_path, 72)
    write_heads(tmp_path, 24, split="val", first=72)
    alone, together = tmp_path / "one", tmp_path / "two"
    alone.mkdir()
    together.mkdir()
    train(0, 1, SPEC, tmp_path, alone)
    spec = dataclasses.replace(SPEC, optim=dataclasses.replace(SPEC.optim, accumulate=accumulate))
    processes.spawn(train, args=(2, spec, tmp_path, together), nprocs=2)
    first, second = load_net(alone).net.state_dict(), load_net(together).net.state_dict()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-4), name
    errors = [float((folder / "mae").read_text()) for folder in (alone, together)]
    assert errors[0] == pytest.approx(errors[1], abs=0.02)
