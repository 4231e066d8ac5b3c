"""Soft labels in pieces: a set is computed once, alike in any company, and taken over by later runs."""

import dataclasses
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpe_core.data.rows import Shard, read_shard, read_soft_labels
from hpe_core.geometry.crop import offset_grid, window
from hpe_core.learning import ensemble
from hpe_core.learning.metrics import PoseSums
from hpe_core.networks.checkpoint import load_net, save_net
from hpe_core.networks.models import PoseNet
from hpe_core.spec.network import MEANING, WEIGHTS, NetSpec
from hpe_core.spec.serde import build, to_dict
from hpe_core.spec.training import LabelSet
from hpe_core.system.files import file_sha256
from tests.engine.test_store import run_all
from tests.faces import CROP, write_heads
from tests.reporting import LocalReporter
from workflows.engine.config import load
from workflows.engine.results import LabelsResult, Results
from workflows.engine.stage import Stage, StageRun
from workflows.full_pipeline import STAGES
from workflows.stages import labels, shards
from workflows.stages.labels import LabelShard, fingerprint, job_hash, mean_error, place
from workflows.stages.shards import BuildShard
from workflows.storage.manifest import finished
from workflows.storage.receipts import Receipt, adopt, fitting_receipt, receipt_file

NAMES = ("first", "second")
CODE = {"module": "as it is"}
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
        net = PoseNet(NetSpec("test_resnet"), CROP.size)
        torch.nn.init.normal_(net.heads[0].weight, std=0.5)  # outputs that differ from window to window
        save_net(self.root / name, net, CROP, {})

    def jobs(self, *sets: LabelSet) -> dict[LabelSet, str]:
        weights = {name: [file_sha256(self.root / name / part) for part in (WEIGHTS, MEANING)] for name in NAMES}
        sha256 = file_sha256(self.shard)
        return {labels: job_hash(self.shard, sha256, labels, weights, CODE) for labels in sets}

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


def test_a_set_has_the_same_bytes_alone_and_in_company(house):
    together = house.label("together", ALL, ONE, FAR)
    for asked, piece in together.items():
        alone = house.label(f"alone-{asked.name}", asked)[asked]
        assert alone.read_bytes() == piece.read_bytes(), asked.name
        shard = read_shard(house.shard)
        assert len(read_soft_labels(piece, shard.sample_ids)) == len(shard)


def test_a_faces_soft_label_is_the_mean_of_its_own_windows(house, monkeypatch):
    """Of all teachers of the set, row by row, however the shard is cut into batches; and the error is that mean's."""
    monkeypatch.setattr(ensemble, "CPU_ROWS", 4)
    nets = {name: load_net(house.root / name).net for name in NAMES}
    shard = read_shard(house.shard)
    crops = torch.from_numpy(shard.images.copy())
    for asked, piece in house.label("stage", ALL, ONE).items():
        views = [window(crops, CROP.size, *at) for at in offset_grid(*asked.offsets)]
        with torch.inference_mode():
            mean = torch.stack([nets[name].predict(view) for name in asked.teachers for view in views]).mean(0)
        found = read_soft_labels(piece, shard.sample_ids).astype(float)
        np.testing.assert_allclose(found, nets[NAMES[0]].form.labels(mean).numpy(), rtol=1e-2, atol=1e-2)
        receipt = fitting_receipt(piece, house.jobs(asked)[asked])
        assert receipt is not None and receipt["rows"] == len(shard) == 6
        angles = nets[NAMES[0]].form.decode(mean).numpy()
        assert mean_error([receipt], asked) == pytest.approx(
            PoseSums.of(angles, shard.angles).summary()["mae"], abs=1e-3
        )


def test_soft_labels_are_made_again_when_anything_that_decides_them_changes(house):
    """The shard's bytes and name, each asked teacher's weights and their meaning, the teachers, K, d, and the code."""
    weights = {name: [f"weights of {name}", f"meaning of {name}"] for name in (*NAMES, "third")}

    def job(
        asked: LabelSet = ALL,
        shard: Path = house.shard,
        sha256: str = "1",
        code: Mapping[str, str] = CODE,
        **others: Any,
    ) -> str:
        return job_hash(shard, sha256, asked, weights | others, code)

    first = job()
    sibling = house.root / "shards" / "others.train" / house.shard.name
    sets = [LabelSet(("second", "first"), 2, 2), LabelSet((*NAMES, "third"), 2, 2), ONE._replace(radius=2, step=2)]
    sets += [ALL._replace(radius=4), ALL._replace(step=1), ALL._replace(mirrored=True)]
    found = [first, job(shard=sibling), *map(job, sets)]
    found += [job(**{name: [f"weights of {name}", "other"]}) for name in NAMES]
    found += [job(**{name: ["other", f"meaning of {name}"]}) for name in NAMES]
    assert job(third=["other", "other"]) == first, "who is not asked has no say"
    found += [job(sha256="2"), job(code={"module": "edited"})]
    assert len(set(found)) == len(found)


def test_the_error_of_a_set_weighs_every_face_alike():
    """Whatever the shards' sizes, and of that set alone. Heads from behind have no say, as in every other table."""

    def errors(front: dict[float, int], behind: dict[float, int]) -> list[list[float]]:
        yaws = np.repeat([10.0, 150.0], [sum(front.values()), sum(behind.values())])
        true = np.column_stack([0 * yaws, yaws, 0 * yaws])
        moved = np.repeat([*front, *behind], [*front.values(), *behind.values()])
        return PoseSums.of(true + moved[:, None], true).table.tolist()

    receipts = [
        {"set": ONE.name, "rows": 6, "errors": errors({10.0: 1}, {3.0: 5}), "shard": "a", "sha256": "1"},
        {"set": ONE.name, "rows": 3, "errors": errors({2.0: 3}, {}), "shard": "b", "sha256": "2"},
        {"set": ONE.name, "rows": 9, "errors": errors({}, {8.0: 9}), "shard": "c", "sha256": "4"},
        {"set": ALL.name, "rows": 3, "errors": errors({}, {5.0: 3}), "shard": "b", "sha256": "3"},
    ]
    assert mean_error(receipts, ONE) == pytest.approx(4.0) and mean_error(receipts, ALL) == pytest.approx(5.0)
    assert fingerprint(receipts) == fingerprint(receipts[::-1])
    for key in ("set", "shard", "sha256"):
        assert fingerprint([receipts[0] | {key: "other"}, *receipts[1:]]) != fingerprint(receipts)


def test_one_more_set_computes_that_set_alone(house):
    before = house.label("old", ALL, ONE)
    jobs = house.jobs(ALL, ONE, FAR)
    wanted = {job: house.root / "new" / place(house.shard, labels) for labels, job in jobs.items()}
    assert adopt(wanted, house.root.glob("old/*/*/part-*.json")) == 2
    after = house.label("new", ALL, ONE, FAR)
    for asked, piece in before.items():
        assert after[asked].stat().st_ino == piece.stat().st_ino, "it is the same file, so it was not written again"
    assert fitting_receipt(after[FAR], jobs[FAR]) is not None


def test_a_piece_whose_bytes_changed_is_made_again(house):
    piece = house.label("stage", ALL)[ALL]
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-40] + bytes(40))
    assert fitting_receipt(piece, house.jobs(ALL)[ALL]) is None
    assert house.label("stage", ALL)[ALL].read_bytes() == whole
    assert receipt_file(piece).exists()


class InProcess:
    """What the stage asks of a dataset of Ray Data, done here."""

    def __init__(self, rows: list[dict[str, Any]], override_num_blocks: int) -> None:
        self.rows = rows

    def map_batches(self, kind: Any, *, fn_constructor_args: tuple[Any, ...], **how: Any) -> "InProcess":
        actor = kind(*fn_constructor_args)
        done = [actor({name: [value] for name, value in row.items()}) for row in self.rows]
        self.rows = [{name: values[0] for name, values in row.items()} for row in done]
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def test_a_shard_is_hashed_once_a_run(tmp_path, monkeypatch):
    """When it is written, or when a later run is about to read it: its receipt says it to manifest and label sets."""
    import ray.data

    hashed: Counter[str] = Counter()
    digest = hashlib.file_digest

    def counted(stream: Any, kind: str) -> Any:
        if found := re.search(r"shards/.*(heads\.\w+/\.?part-\d+)\.parquet", stream.name):
            hashed[found[1].replace(".part", "part")] += 1
        return digest(stream, kind)

    def jobs_here(jobs: Any, sources: Any, data: Any, folder: Path, workers: int) -> Iterator[Receipt]:
        do = BuildShard(sources, data, folder, 20.0)
        return (json.loads(do(shards._job_row(job))["receipt"]) for job in jobs)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(ray.data, "from_items", InProcess)
    monkeypatch.setattr(shards, "_run_jobs", jobs_here)
    for module in (shards, labels):
        monkeypatch.setattr(module, "capacity", lambda cluster: {"CPU": 2.0, "GPU": 0.0})
    words = [f"store={tmp_path}", "data.datasets.heads.count=30", "data.rows_per_shard=6"]
    spec, teachers = load(["tests/tiny.yaml"], words), tmp_path / "taught"
    for name, train in spec.teachers.items():
        save_net(teachers / name, PoseNet(train.net, spec.data.crop.size), spec.data.crop, {})

    def label(run: StageRun) -> LabelsResult:
        return labels.run(dataclasses.replace(run, inputs={**run.inputs, "teachers": teachers}))

    stages = (STAGES[0], Stage("labels", label, ("shards",), labels.depends))
    entry, labelled = run_all(stages, spec).values()
    train = [split for name, split in finished(entry.folder)["result"]["splits"].items() if name.endswith(".train")]
    assert finished(labelled.folder)["result"]["rows"] == sum(split["kept"] for split in train) > len(train)
    made = sorted(str(path.relative_to(entry.folder).with_suffix("")) for path in entry.folder.glob("*/*.parquet"))
    assert len(spec.label_sets()) > 1 and len(made) > 3 and hashed == Counter(made)
    for name in made:
        file = f"{name}.parquet"
        assert (
            finished(entry.folder)["files"][file]["sha256"]
            == hashlib.sha256((entry.folder / file).read_bytes()).hexdigest()
        )
    hashed.clear()
    run_all(stages, load(["tests/tiny.yaml"], [*words, "student.distill.mirrored=true"]))
    assert hashed == Counter(made)


def test_calls_that_overlap_have_the_teachers_in_turn_and_write_the_same_bytes(house, monkeypatch):
    """One shard is read and one is written while another is looked at; memory on the device is that of one."""
    shards, inside, most = write_heads(house.root / "more", 12, per_shard=3), [], []
    folders = {name: str(house.root / name) for name in NAMES}
    ensembles = LabelShard.ensembles

    def watched(self: LabelShard, shard: Shard, sets: Sequence[LabelSet]) -> Any:
        inside.append(shard)
        most.append(len(inside))
        time.sleep(0.05)
        found = ensembles(self, shard, sets)
        inside.pop()
        return found

    monkeypatch.setattr(LabelShard, "ensembles", watched)

    def labelled(stage: str, calls: int) -> list[bytes]:
        actor = LabelShard(folders, str(house.root / stage), [tuple(ALL)], 1)
        with ThreadPoolExecutor(calls) as pool:
            list(pool.map(lambda shard: actor({"shard": [shard], "jobs": [json.dumps(["hash"])]}), shards))
        return [(house.root / stage / place(shard, ALL)).read_bytes() for shard in shards]

    assert labelled("one by one", 1) == labelled("overlapping", 3)
    assert len(most) == 2 * len(shards) and set(most) == {1}


def test_a_run_whose_teachers_answer_online_stores_no_labels(tmp_path):
    spec = load(["demo"], [f"store={tmp_path}", "search.space=null", "student.distill.labels=online"])
    run = StageRun("labels", "labels/1", spec, tmp_path, {}, {}, Results({}), LocalReporter(lambda event: None))
    result = labels.run(run)
    assert result.sets == () and result.metrics() == {} and not any(tmp_path.iterdir())
    assert build(LabelsResult, json.loads(json.dumps(to_dict(result)))) == result
