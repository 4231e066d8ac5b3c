"""Who learns from which faces, by what a trained network is known again, and what is told of it."""

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.data.rows import ShardError, read_shard, shard_files, write_shard, write_soft_labels
from hpe_core.learning.checkpoint import save_net
from hpe_core.learning.models import PoseNet
from hpe_core.spec.network import MEANING, WEIGHTS, NetSpec
from hpe_core.spec.pipeline import PipelineSpec, student_with
from hpe_core.spec.serde import build, to_dict
from hpe_core.spec.training import LabelSet, TrainSpec
from hpe_core.system.files import write_json
from hpe_core.training.loop import EpochEnd
from tests.faces import CROP, face_row
from tests.reporting import LocalReporter
from workflows.engine.results import NetworkResult
from workflows.engine.stage import StageFailed
from workflows.engine.told import trial_file
from workflows.stages import search as tune
from workflows.stages.student import hard_twin
from workflows.tracking.progress import Event
from workflows.training import jobs
from workflows.training import networks as train
from workflows.training.jobs import Job, job_for, online_teachers, open_data
from workflows.training.networks import resend, train_all, train_one

SIZES = {("heads", "train"): 24, ("others", "train"): 10, ("heads", "val"): 5, ("others", "val"): 2}
SIZES |= {("heads", "test"): 3, ("tested", "test"): 1}  # no two sums of them are equal
NET = {"backbone": "test_resnet"}


def pipeline(**changes: Any) -> PipelineSpec:
    """Trained on two datasets, tested on one of them and on another; `changes` are of its top level."""
    names = ("heads", "others", "tested")
    heads = {name: {"reader": "synthetic", "count": 9, "seed": i} for i, name in enumerate(names)}
    tree = {
        "name": "law",
        "data": {"datasets": heads, "train": ["heads", "others"], "test": ["heads", "tested"], "crop": to_dict(CROP)},
        "teachers": {"first": {"net": NET}, "second": {"net": NET}},
        "student": {"net": NET, "optim": {"epochs": 10, "warmup_epochs": 3}, "distill": {}},
        "search": {"epochs": 4, "space": {"optim.lr": {"low": 0.1, "high": 0.9}}},
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return build(PipelineSpec, tree)


LABELS = pipeline().label_set(pipeline().student)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards of SIZES, and soft labels that say which row they belong to: all are the row's yaw / 100."""
    root, first = tmp_path_factory.mktemp("faces"), 0
    for (name, split), count in SIZES.items():
        for part, start in enumerate(range(first, first + count, 9)):
            rows = [face_row(i) for i in range(start, min(start + 9, first + count))]
            place = Path(f"{name}.{split}", f"part-{part:05d}.parquet")
            write_shard(root / "shards" / place, rows, CROP, "raw")
            words = np.array([[[row.pose[1] / 100] * 66] * 3 for row in rows], np.float16)
            ids = [row.sample_id for row in rows]
            write_soft_labels(root / "labels" / LABELS.name / place, ids, words, "law")
        first += count
    return {name: root / name for name in ("shards", "labels", "teachers")}


def in_shards(folders: dict[str, Path], split: str) -> set[tuple[float, ...]]:
    """The poses of a split of both datasets that are trained on: no two heads have the same."""
    files = [file for name in ("heads", "others") for file in shard_files(folders["shards"], name, split)]
    return {tuple(pose) for file in files for pose in read_shard(file).angles.tolist()}


def poses(batches: Any) -> list[tuple[float, ...]]:
    return [tuple(pose) for batch in batches for pose in batch.angles_B3.tolist()]


def check_faces(folders: dict[str, Path], learnt: Any, judged: Any, *, soft: bool) -> None:
    """Learnt are the training rows, each with its own soft label; judged are the validation rows, each once."""
    batches = list(learnt.shuffled(1, seed=0, epoch=0))
    assert set(poses(batches)) == in_shards(folders, "train")
    assert sorted(poses(judged.ordered(4))) == sorted(in_shards(folders, "val"))
    for batch in batches:
        assert (batch.soft_B3N is not None) == soft
        if batch.soft_B3N is not None:
            assert float(batch.soft_B3N[0, 0, 0]) == pytest.approx(float(batch.angles_B3[0, 1]) / 100, abs=1e-3)


def job(folders: dict[str, Path], labels: bool = True, **changes: Any) -> Job:
    spec = pipeline(**changes)
    place = folders["labels"] / LABELS.name if labels else None
    return Job("key", "name", spec.student, spec.data, folders["shards"], place)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("ingest", ["all_shards", "own_shards"])
def test_training_rows_teach_and_validation_rows_judge(folders, ingest, labels):
    data = to_dict(pipeline().data) | {"ingest": ingest}
    check_faces(folders, *open_data(job(folders, labels, data=data)), soft=labels)


def test_labels_of_another_form_are_refused(folders):
    fisher = job(folders)
    fisher = dataclasses.replace(
        fisher, spec=dataclasses.replace(fisher.spec, net=NetSpec(head="fisher"), hard_loss="fisher")
    )
    with pytest.raises(ShardError, match=r"part-00000\.parquet hold bins; a student of this head reads rotations"):
        open_data(fisher)


@pytest.mark.parametrize("ingest", ["all_shards", "own_shards"])
def test_batches_do_not_depend_on_the_order_in_which_datasets_are_named(folders, ingest):
    """A network's hash does not, so a network of the same name must have seen the same batches."""
    data = to_dict(pipeline().data) | {"ingest": ingest}
    names = (["heads", "others"], ["others", "heads"])
    orders = [open_data(job(folders, data=data | {"train": order}))[0] for order in names]
    first, second = (poses(learnt.shuffled(4, seed=0, epoch=1)) for learnt in orders)
    assert first == second and first != poses(orders[0].shuffled(4, seed=0, epoch=2))


def test_a_stream_has_as_many_of_each(folders):
    learnt, judged = open_data(job(folders, data=to_dict(pipeline().data) | {"ingest": "ray_data"}))
    assert (len(learnt), len(judged)) == (34, 7)


class Fit:
    """Stands for the training loop: remembers what it was given, and ends two epochs, or as many as it is told."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, rank: int = 0, resume: Path | None = None, epochs: int = 2
    ) -> None:
        import ray.train
        import ray.tune

        self.epochs = epochs
        self.reported: list[dict[str, float]] = []
        self.files: list[dict[str, Any]] = []
        self.events: list[Event] = []
        monkeypatch.setattr("hpe_core.training.loop.fit", self)
        told = {"get_world_rank": rank, "get_world_size": rank + 1}
        context = SimpleNamespace(**{name: lambda value=value: value for name, value in told.items()})
        checkpoint = None if resume is None else ray.train.Checkpoint.from_directory(str(resume))
        for library in (ray.train, ray.tune):
            monkeypatch.setattr(library, "get_context", lambda: context)
            monkeypatch.setattr(library, "get_checkpoint", lambda: checkpoint)
            monkeypatch.setattr(library, "report", self.report)
        self.reporter = LocalReporter(self.events.append)

    def __call__(self, spec: Any, crop: Any, learnt: Any, judged: Any, **more: Any) -> None:
        self.spec, self.crop, self.faces, self.more = spec, crop, (learnt, judged), more
        for epoch, mae in enumerate((6.5, 7.0, 7.5, 8.0)[: self.epochs], start=1):
            more["on_epoch"](EpochEnd(epoch, {"val/mae": mae}, 6.5, lambda folder: None))

    def report(self, metrics: dict[str, float], checkpoint: Any = None, **how: Any) -> None:
        self.reported.append(metrics)
        if checkpoint is not None:
            texts = {path.name: json.loads(path.read_text()) for path in Path(checkpoint.path).iterdir()}
            self.files.append(texts)

    def told(self, kind: str) -> list[Any]:
        return [body for found, body in self.events if found == kind]


def test_a_trial_is_the_changed_student_for_the_searchs_epochs(folders, monkeypatch, tmp_path):
    """And every epoch lies in the stage's folder with the time that was told, so that it counts once."""
    spec, fit = pipeline(), Fit(monkeypatch)
    config = {"number": 7, "optim.lr": 0.5, "net.bin_widths": "[3.0, 9.0]"}
    inputs = {name: str(folder) for name, folder in folders.items()}
    tune.trial(config, to_dict(spec), "search/1", str(tmp_path), inputs, fit.reporter)
    check_faces(folders, *fit.faces, soft=True)
    changed = student_with(spec.student, {"optim.lr": 0.5, "net.bin_widths": [3.0, 9.0]})
    expected = dataclasses.replace(changed, optim=dataclasses.replace(changed.optim, epochs=4, warmup_epochs=1))
    assert fit.spec == expected and fit.crop == CROP and fit.more["teachers"] is None
    assert fit.reported == [{"val_error": 6.5, "best_val_error": 6.5}, {"val_error": 7.0, "best_val_error": 6.5}]
    told = [("search/1/007", {"val/mae": mae}, epoch) for epoch, mae in ((1, 6.5), (2, 7.0))]
    assert [body[:3] for body in fit.told("metrics")] == told
    assert fit.told("ended") == [("search/1/007", "FINISHED")]
    kept = json.loads(trial_file(tmp_path, 7).read_text())
    history = kept["history"]
    assert fit.told("started") == [("search/1/007", "trial 007", "search/1", kept["params"])]
    again = [("search/1/007", {"val/mae": row["val/mae"]}, row["epoch"], row["time_ms"]) for row in history]
    assert again == fit.told("metrics")
    assert fit.files[-1]["history.json"] == history

    write_json(tmp_path / "history.json", history[:1])
    again = Fit(monkeypatch, resume=tmp_path)
    tune.trial(config, to_dict(spec), "search/1", str(tmp_path / "again"), inputs, again.reporter)
    assert again.files[0]["history.json"][0] == history[0], "what came before a kill is kept"


def test_a_worker_trains_its_job_and_tells_each_epoch_once(folders, monkeypatch, tmp_path):
    """Told again after a kill, an epoch has the same time, so that it counts once."""
    asked, fit = job(folders), Fit(monkeypatch)
    config = {"job": asked, "threads": 1, "readers": 1, "checkpoint_s": 0}
    train.train_worker(config | {"reporter": fit.reporter})
    check_faces(folders, *fit.faces, soft=True)
    assert (fit.spec, fit.crop, fit.more["resume"]) == (asked.spec, CROP, None)
    history = fit.files[-1]["history.json"]
    assert [(row["epoch"], row["val/mae"]) for row in history] == [(1, 6.5), (2, 7.0)]
    assert fit.files[0]["history.json"] == history[:1]
    first = fit.told("metrics")
    assert [(body[1], body[2]) for body in first] == [({"val/mae": 6.5}, 1), ({"val/mae": 7.0}, 2)]

    write_json(tmp_path / "history.json", history[:1])
    again = Fit(monkeypatch, resume=tmp_path)
    train.train_worker(config | {"reporter": again.reporter})
    assert again.told("metrics")[0] == first[0] and again.more["resume"] is not None
    assert [row["epoch"] for row in again.files[-1]["history.json"]] == [1, 1, 2], "what came before is kept"

    silent = Fit(monkeypatch, rank=1)
    train.train_worker(config | {"reporter": silent.reporter})
    assert silent.events == [] and silent.files == [] and len(silent.reported) == 2
    assert (silent.more["place"].rank, silent.more["place"].world) == (1, 2)


def test_checkpoints_come_by_time_and_the_last_epoch_has_one(folders, monkeypatch):
    """What lies between is told with the next of them, so that an epoch that is lost was not told."""
    fit = Fit(monkeypatch, epochs=4)
    asked = job(folders, student={"net": NET, "optim": {"epochs": 4}, "distill": {}})
    train.train_worker({"job": asked, "threads": 1, "readers": 1, "checkpoint_s": 1e9, "reporter": fit.reporter})
    assert [[row["epoch"] for row in kept["history.json"]] for kept in fit.files] == [[1], [1, 2, 3, 4]]
    assert [body[2] for body in fit.told("metrics")] == [1, 2, 3, 4] and len(fit.reported) == 4


def test_a_network_learns_by_the_batch_and_the_rate_of_its_workers(folders, monkeypatch):
    """However many there are when it starts: elastic ones are counted anew whenever their number has changed."""
    optim = {"batch_size": 8, "lr": 0.01, "batch_scaling": "scale", "lr_scaling": "linear"}
    for rank, seen in ((0, (8, 0.01)), (2, (24, 0.03))):
        fit = Fit(monkeypatch, rank=rank)
        asked = job(folders, student={"net": NET, "optim": optim, "distill": {}})
        train.train_worker({"job": asked, "threads": 1, "readers": 1, "checkpoint_s": 0, "reporter": fit.reporter})
        assert (fit.spec.optim.batch_size, fit.spec.optim.lr) == (seen[0], pytest.approx(seen[1]))


EPOCHS = st.lists(st.floats(1, 20), min_size=1, max_size=8)


@given(EPOCHS)
def test_a_network_is_as_good_as_its_best_epoch(errors):
    history = [{"epoch": i, "time_ms": i, "val/mae": mae, "train/loss": -mae} for i, mae in enumerate(errors, start=1)]
    found = NetworkResult.of(history, 12.5)
    assert found == NetworkResult(min(errors), 1 + errors.index(min(errors)), len(errors), 12.5, tuple(history))


@given(EPOCHS, st.integers(0, 8))
def test_an_epoch_that_is_told_twice_counts_once(errors, lost):
    history = [{"epoch": i, "time_ms": 1000 * i, "val/mae": mae} for i, mae in enumerate(errors, start=1)]
    events: list[Event] = []
    for part in (history, history[lost:], history):
        resend(LocalReporter(events.append), "key", part)
    assert len({json.dumps(event) for event in events}) == len(history)
    assert all(body == ("key", {"val/mae": errors[body[2] - 1]}, body[2], 1000 * body[2]) for _, body in events)


def stage_of(spec: PipelineSpec, folders: dict[str, Path], **hashes: str) -> Any:
    known = {"shards": "1", "teachers": "2", "labels": "3", "search": "4"} | hashes
    return SimpleNamespace(spec=spec, key="student/1", name="student", inputs=folders, hashes=known)


def online(student: TrainSpec) -> TrainSpec:
    return student_with(student, {"distill.labels": "online"})


def stored(student: TrainSpec) -> TrainSpec:
    return student


Taught = Callable[[TrainSpec], TrainSpec]


def network(folders: dict[str, Path], taught: Taught = stored, name: str = "distilled", **changes: Any) -> str:
    """A network's name. `changes` are of the configuration, or with a `_hash` of what an earlier stage made."""
    hashes = {key.removesuffix("_hash"): changes.pop(key) for key in list(changes) if key.endswith("_hash")}
    spec = pipeline(**changes)
    return job_for(stage_of(spec, folders, **hashes), name, taught(spec.student)).hash


@pytest.mark.parametrize(
    ("changes", "taught", "other"),
    [
        ({"name": "hard"}, stored, True),
        ({"shards_hash": "other"}, stored, True),
        ({"labels_hash": "other"}, stored, True),
        ({"labels_hash": "other"}, online, False),
        ({"labels_hash": "other"}, hard_twin, False),
        ({"teachers_hash": "other"}, stored, False),  # what they said is in the labels
        ({"teachers_hash": "other"}, online, True),
        ({"teachers_hash": "other"}, hard_twin, False),
        ({"student": {"seed": 5}}, stored, True),
        ({"student": {"seed": 5}}, hard_twin, True),
        ({"cluster": {"workers": 2}}, stored, True),
        ({"cluster": {"workers": [1, 1]}}, stored, False),
        ({"cluster": {"workers": [1, 2]}}, stored, True),
        ({"cluster": {"stages": {"student": {"workers": 2}}}}, stored, True),
        ({"cluster": {"stages": {"teachers": {"workers": 2}, "student": {"gpus": 0, "cpus": 3}}}}, stored, False),
        ({"cluster": {"cpus_per_worker": 2, "threads_per_worker": 2, "max_failures": 9}}, stored, False),
        ({"data": {"ingest": "own_shards"}}, stored, True),
        ({"data": {"max_bad_share": 0.9, "stream_shards": 3, "resident_gb": 1}}, stored, False),
        ({"search": {"trials": 9, "epochs": 9, "finalists": 9}}, stored, False),
        ({"teachers": {"second": {"net": NET, "seed": 3}}}, stored, False),  # of two, the changed one is trained anew
        ({"evaluate": {"offset_step": 1}, "publish": {"alias": "best"}, "mlflow": {"uri": "none"}}, stored, False),
    ],
)
def test_a_network_is_known_by_what_it_depends_on(folders, changes, taught, other):
    assert (network(folders, taught, **changes) != network(folders, taught)) == other


def test_elastic_workers_are_known_by_how_few_and_how_many_they_may_be(folders):
    found = [network(folders, cluster={"workers": workers}) for workers in (1, 2, [1, 2], [2, 2], [2, 4], [1, 4], 4)]
    assert found[1] == found[3] and len(set(found)) == len(found) - 1


def test_weights_and_code_are_part_of_a_networks_name(folders, tmp_path, monkeypatch):
    file, found = tmp_path / "weights", set()
    (tmp_path / MEANING).write_text("")
    student = {"net": NET | {"pretrained": str(file)}}
    for text in ("one", "two"):
        file.write_text(text)
        found.add(network(folders, student=student))
        for name in (WEIGHTS, MEANING):  # bins and crop are read from the second
            (tmp_path / name).write_text(text)
            found.add(network(folders, student={"net": NET, "start": str(tmp_path)}))
    monkeypatch.setattr(jobs, "code_hashes", lambda module: {"module": "edited"})
    found.add(network(folders, student=student))
    assert len(found) == 7


def test_a_job_crosses_to_a_worker_whole(folders):
    stage = stage_of(pipeline(), folders)
    for spec in (stage.spec.student, online(stage.spec.student), hard_twin(stage.spec.student)):
        sent = job_for(stage, "distilled", spec)
        got = pickle.loads(pickle.dumps(sent))
        assert vars(got) == vars(sent)
    assert job_for(stage, "a", online(stage.spec.student)).online == (LABELS, folders["teachers"])
    assert job_for(stage, "a", stage.spec.student).labels == folders["labels"] / LABELS.name


def test_online_labels_come_from_the_teachers_that_are_asked(tmp_path):
    import torch

    for seed, name in enumerate(("first", "second", "third")):
        torch.manual_seed(seed)
        save_net(tmp_path / name, PoseNet(NetSpec("test_resnet"), CROP.size), CROP, {"name": name})
    asked = LabelSet(("first", "third"), 2, 2)
    spec = pipeline()
    teachers = online_teachers(Job("", "", spec.student, spec.data, Path(), None, (asked, tmp_path)), "cpu")
    assert (teachers.labels, teachers.size, list(teachers.nets)) == (asked, CROP.size, ["first", "third"])
    first, third = (next(net.parameters()) for net in teachers.nets.values())
    torch.manual_seed(2)
    wanted = next(PoseNet(NetSpec("test_resnet"), CROP.size).parameters())
    assert torch.equal(third, wanted) and not torch.equal(first, third)
    assert online_teachers(Job("", "", spec.student, spec.data, Path()), "cpu") is None


def test_a_network_that_exists_is_taken_not_trained(tmp_path, monkeypatch):
    events: list[Event] = []
    spec = pipeline(store=str(tmp_path))
    folder, reporter = tmp_path / "student" / "1", LocalReporter(events.append)
    stage = SimpleNamespace(spec=spec, key="s/1", name="student", folder=folder, reporter=reporter)
    asked = Job("s/1/distilled", "distilled", spec.student, spec.data, Path())
    trained = NetworkResult.of([{"epoch": 1, "time_ms": 1, "val/mae": 3.0}], 1.0)

    def ray_train(job: Job, stage: Any, home: Path) -> NetworkResult:
        home.mkdir(parents=True)
        for name in train.KEPT:
            (home / name).write_text(f"{name} of {job.name}")
        write_json(home / "result.json", to_dict(trained))
        return trained

    dies = Mock(side_effect=RuntimeError("no room"))
    monkeypatch.setattr(train, "run_ray_train", dies)
    with pytest.raises(RuntimeError):
        train_one(asked, stage)
    assert events[-1] == ("ended", ("s/1/distilled", "FAILED")) and not stage.folder.exists()
    monkeypatch.setattr(train, "run_ray_train", ray_train)
    first = train_one(asked, stage)
    monkeypatch.setattr(train, "run_ray_train", dies)
    events.clear()
    assert train_one(asked, stage) == first == trained
    assert [body[:3] for kind, body in events if kind == "metrics"] == [("s/1/distilled", {"val/mae": 3.0}, 1)]
    assert events[-1] == ("ended", ("s/1/distilled", "FINISHED"))
    kept = {path.name: path.read_text() for path in (stage.folder / "distilled").iterdir()}
    assert kept == {name: f"{name} of distilled" for name in train.KEPT}


@pytest.mark.parametrize("room", [1, 8])
def test_all_are_trained_and_those_that_fail_are_named(monkeypatch, room):
    spec = pipeline()
    stage: Any = SimpleNamespace(spec=spec, name="teachers")
    asked = [Job("", name, spec.student, spec.data, Path()) for name in ("a", "b", "c")]
    begun = []

    def one(bad: str) -> Callable[..., Any]:
        def train_one(job: Job, stage: Any) -> str:
            begun.append(job.name)
            if job.name == bad:
                raise RuntimeError(f"trace\n{job.name} broke")
            return f"result of {job.name}"

        return train_one

    monkeypatch.setattr(train, "capacity", lambda cluster: {"CPU": room, "GPU": 0})
    monkeypatch.setattr(train, "train_one", one("nobody"))
    assert train_all(asked, stage) == {name: f"result of {name}" for name in "abc"}
    begun.clear()
    monkeypatch.setattr(train, "train_one", one("b"))
    with pytest.raises(StageFailed, match=r"stage teachers: b: b broke \(finished networks are kept"):
        train_all(asked, stage)
    assert sorted(begun) == ["a", "b", "c"], "one that fails stops no other"
