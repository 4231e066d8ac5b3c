"""Soft labels in pieces: a set is computed once, alike in any company, and taken over by later runs."""

from pathlib import Path

import pytest
import torch

from hpe_core.data.rows import read_shard, read_soft_labels
from hpe_core.learning.checkpoint import MEANING, WEIGHTS, save_net
from hpe_core.learning.models import PoseNet
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import LabelSet
from hpe_core.system.files import file_sha256
from tests.faces import CROP, write_heads
from workflows.engine.receipts import adopt, fitting_receipt, receipt_file
from workflows.stages.labels import LabelShard, job_hash, place

NAMES = ("first", "second")
ALL, ONE, FAR = LabelSet(NAMES, 2, 2), LabelSet(("first",), 0, 1), LabelSet(NAMES, 4, 2)


class House:
    """A shard and two teachers in a folder, and a labels stage over them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (self.shard,) = write_heads(root / "shards", 6)
        for seed, name in enumerate(NAMES):
            self.teach(name, seed)

    def teach(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        save_net(self.root / name, PoseNet(NetSpec("test_resnet"), CROP.size), CROP, {})

    def jobs(self, *sets: LabelSet) -> dict[LabelSet, str]:
        weights = {name: [file_sha256(self.root / name / part) for part in (WEIGHTS, MEANING)] for name in NAMES}
        return {labels: job_hash(self.shard, labels, weights) for labels in sets}

    def label(self, stage: str, *sets: LabelSet) -> dict[LabelSet, Path]:
        """Run the stage's actor over the shard; the pieces that it leaves."""
        folders = {name: str(self.root / name) for name in NAMES}
        actor = LabelShard(folders, str(self.root / stage), [tuple(labels) for labels in sets], 1)
        receipts = actor.label(self.shard, list(self.jobs(*sets).values()))
        assert [receipt["set"] for receipt in receipts] == [labels.name for labels in sets]
        return {labels: self.root / stage / place(self.shard, labels) for labels in sets}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_set_has_the_same_bytes_alone_and_in_company(house: House):
    together = house.label("together", ALL, ONE, FAR)
    for labels, piece in together.items():
        alone = house.label(f"alone-{labels.name}", labels)[labels]
        assert alone.read_bytes() == piece.read_bytes(), labels.name
        shard = read_shard(house.shard)
        assert len(read_soft_labels(piece, shard.sample_ids)) == len(shard)


def test_one_more_set_computes_that_set_alone(house: House):
    before = house.label("old", ALL, ONE)
    jobs = house.jobs(ALL, ONE, FAR)
    wanted = {job: house.root / "new" / place(house.shard, labels) for labels, job in jobs.items()}
    assert adopt(wanted, house.root.glob("old/*/*/part-*.json")) == 2
    after = house.label("new", ALL, ONE, FAR)
    for labels, piece in before.items():
        assert after[labels].stat().st_ino == piece.stat().st_ino, "it is the same file, so it was not written again"
    assert fitting_receipt(after[FAR], jobs[FAR]) is not None


def test_a_teacher_that_was_trained_anew_labels_anew_where_it_has_a_say(house: House):
    before = house.jobs(ALL, ONE)
    house.teach("second", 7)
    after = house.jobs(ALL, ONE)
    assert before[ONE] == after[ONE] and before[ALL] != after[ALL]


def test_a_piece_whose_bytes_changed_is_made_again(house: House):
    piece = house.label("stage", ALL)[ALL]
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-40] + bytes(40))
    assert fitting_receipt(piece, house.jobs(ALL)[ALL]) is None
    assert house.label("stage", ALL)[ALL].read_bytes() == whole
    assert receipt_file(piece).exists()
