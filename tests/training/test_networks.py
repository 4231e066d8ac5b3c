"""Who learns from which faces, what is told of it, and what is trained at all."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.data.rows import ShardError, read_shard, shard_files
from hpe_core.spec.network import WEIGHTS, NetSpec
from hpe_core.spec.pipeline import student_with
from hpe_core.spec.serde import to_dict
from hpe_core.system.files import file_sha256, write_json
from hpe_core.training.loop import EpochEnd
from tests.faces import CROP, ordered
from tests.reporting import LocalReporter
from tests.training.pipelines import LABELS, NET, pipeline
from workflows.engine.results import NetworkResult
from workflows.engine.stage import StageFailed
from workflows.engine.told import trial_file
from workflows.stages import search as tune
from workflows.tracking.progress import Event
from workflows.training import networks as train
from workflows.training.jobs import Job, open_data
from workflows.training.networks import resend, train_all, train_one
from workflows.training.stream import StreamedFaces


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
    assert sorted(poses(ordered(judged, 4))) == sorted(in_shards(folders, "val"))
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


def test_a_stream_has_as_many_of_each_with_their_labels(folders):
    data = to_dict(pipeline().data) | {"ingest": "ray_data", "stream_shards": 3}
    for labels in (True, False):
        learnt, judged = open_data(job(folders, labels, data=data), readers=5)
        assert isinstance(learnt, StreamedFaces) and (len(learnt), len(judged)) == (34, 7)
        assert (learnt.stream_shards, learnt.readers) == (3, 5)
        beside = [None if one.labels is None else one.labels.relative_to(folders["labels"]) for one in learnt.shards]
        own = [LABELS.name / one.file.relative_to(folders["shards"]) for one in learnt.shards]
        assert beside == (own if labels else [None] * len(own))


def test_workers_with_shards_of_their_own_never_learn_from_each_others(folders):
    def met(ingest: str) -> set[tuple[float, ...]]:
        learnt, _ = open_data(job(folders, data=to_dict(pipeline().data) | {"ingest": ingest}))
        seen = [
            {pose for epoch in range(4) for pose in poses(learnt.shuffled(4, seed=0, epoch=epoch, rank=rank, world=2))}
            for rank in (0, 1)
        ]
        assert all(seen)
        return seen[0] & seen[1]

    assert not met("own_shards") and met("all_shards")


@pytest.mark.parametrize("ingest", ["all_shards", "own_shards", "ray_data"])
def test_landmarks_are_read_for_those_alone_who_learn_them(folders, ingest):
    data = to_dict(pipeline().data) | {"ingest": ingest}
    for wanted in (True, False):
        student = {"net": NET | {"landmarks": wanted}, "distill": {}}
        learnt, judged = open_data(job(folders, data=data, student=student))
        assert (learnt.landmarks, judged.landmarks) == (wanted, wanted)
        assert all((batch.landmarks_BL3 is not None) == wanted for batch in ordered(judged, 4))


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
    assert fit.more["place"].rows_bytes == 1e9 * spec.data.resident_gb
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
    assert fit.more["place"].rows_bytes == 1e9 * asked.data.resident_gb
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


@pytest.mark.parametrize("damage", [None, b"", b"bytes of another", "gone", "torn"])
def test_a_network_whose_files_are_damaged_is_trained_anew(tmp_path, damage):
    """Its stage would copy them, and every stage to come would be made from them, without a word."""
    trained = NetworkResult.of([{"epoch": 1, "time_ms": 1, "val/mae": 3.0}], 1.0)
    for name in train.KEPT:
        (tmp_path / name).write_bytes(b"bytes of its own")
    noted = {name: file_sha256(tmp_path / name) for name in train.KEPT}
    write_json(tmp_path / train.RESULT, {**to_dict(trained), "files": noted})
    for name in train.KEPT if isinstance(damage, bytes) else ():
        (tmp_path / name).write_bytes(damage)
        assert train.kept_result(tmp_path) is None
        (tmp_path / name).write_bytes(b"bytes of its own")
    if damage == "gone":
        (tmp_path / WEIGHTS).unlink()
    if damage == "torn":
        (tmp_path / train.RESULT).write_text('{"epochs": 1')
    assert train.kept_result(tmp_path) == (None if isinstance(damage, str) else trained)


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
