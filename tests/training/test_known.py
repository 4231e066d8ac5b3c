"""By what a trained network is known again: what changes its name, and what does not."""

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpe_core.errors import SpecError
from hpe_core.networks.checkpoint import save_net
from hpe_core.networks.models import PoseNet
from hpe_core.spec.network import MEANING, WEIGHTS, NetSpec
from hpe_core.spec.pipeline import PipelineSpec, student_with
from hpe_core.spec.serde import to_dict
from hpe_core.spec.training import LabelSet, TrainSpec
from hpe_core.system.files import write_json
from tests.faces import CROP
from tests.training.pipelines import LABELS, NET, pipeline
from workflows.stages.student import hard_twin
from workflows.training import jobs
from workflows.training.jobs import Job, job_for, online_teachers


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
    meaning = {"net": NET, "crop": to_dict(CROP)}
    write_json(tmp_path / MEANING, meaning)
    student = {"net": NET | {"pretrained": str(file)}}
    for text in ("one", "two"):
        file.write_text(text)
        found.add(network(folders, student=student))
        (tmp_path / WEIGHTS).write_text(text)
        found.add(network(folders, student={"net": NET, "start": str(tmp_path)}))
        write_json(tmp_path / MEANING, meaning | {"notes": text})  # bins and crop are read from it
        found.add(network(folders, student={"net": NET, "start": str(tmp_path)}))
    monkeypatch.setattr(jobs, "code_hashes", lambda module: {"module": "edited"})
    found.add(network(folders, student=student))
    assert len(found) == 7


@pytest.mark.parametrize(("ours", "saved"), [(0.87, 1.0), (1.0, 0.87), (0.87, 0.87)])
def test_a_network_begins_with_weights_of_its_own_boxes_alone(tmp_path, ours, saved):
    """In tighter boxes a face has another size; the margin is no business of the weights."""
    crops = [dataclasses.replace(CROP, box_scale=scale) for scale in (ours, saved)]
    save_net(tmp_path, PoseNet(NetSpec("test_resnet"), CROP.size), dataclasses.replace(crops[1], margin_px=1), {})
    trained = {"student": TrainSpec(net=NetSpec("test_resnet"), start=str(tmp_path))}
    if ours == saved:
        assert jobs.wrong_weights(trained, crops[0]) == [] and set(jobs.weights(trained, crops[0])) == {str(tmp_path)}
    else:
        said = f"student.start: {tmp_path} cannot be begun with: its box_scale is {saved}, not {ours}"
        assert jobs.wrong_weights(trained, crops[0]) == [said]
        with pytest.raises(SpecError, match="its box_scale is"):
            jobs.weights(trained, crops[0])


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
