"""What is done to Ray's own trainer."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train

from workflows.engine.cluster import trainer


@pytest.mark.parametrize(("dashboard", "kept"), [(None, False), ("127.0.0.1:8265", True)])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_trainer_starts_no_actor_that_has_nothing_to_do(monkeypatch, dashboard, kept, workers):
    """None for datasets that are not given. One that asks the dashboard whether the controller lives only where there
    is one: else each network waits at its end for the answer."""
    asked = []
    context = SimpleNamespace(gcs_address="127.0.0.1:6379")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(trainer, "dashboard_address", lambda address, _: asked.append(address) or dashboard)
    made = trainer.trainer_of(workers, print, scaling_config=ray.train.ScalingConfig(num_workers=workers))
    names = {type(one).__name__ for one in made._create_default_callbacks()}
    assert asked == ["127.0.0.1:6379"] and names > {"BackendSetupCallback", "AcceleratorSetupCallback"}
    assert "DatasetsCallback" not in names
    assert ("PlacementGroupCleanerCallback" in names) == kept


class Workers:
    """A group of workers on these machines, whose tasks run here."""

    def __init__(self, nodes: list[str], gpus: float) -> None:
        self.nodes, self.gpus = nodes, gpus

    def __len__(self) -> int:
        return len(self.nodes)

    def get_resources_per_worker(self) -> dict[str, float]:
        return {"CPU": 1.0, "GPU": self.gpus}

    def execute(self, task: Any) -> list[Any]:
        return list(self.nodes) if task.__name__ == "node" else [task() for _ in self.nodes]

    def execute_single(self, _rank: int, task: Any) -> Any:
        return task()

    def execute_single_async(self, _rank: int, task: Any, **words: Any) -> Any:
        return task, words


@pytest.mark.parametrize(
    ("nodes", "gpus", "by_file"), [(["a", "a"], 0.0, True), (["a", "b"], 0.0, False), (["a", "a"], 1.0, False)]
)
def test_workers_of_one_machine_meet_over_a_file_and_others_as_ray_has_it(monkeypatch, tmp_path, nodes, gpus, by_file):
    """That one machine's workers reach each other so, and ask nobody, is seen in whole runs (`test_killed.py`)."""
    from ray.train.torch import config

    from workflows.engine.cluster import torch_group

    as_ray_has_it, joined = [], []
    monkeypatch.setattr(config._TorchBackend, "on_start", lambda *_: as_ray_has_it.append(True))
    monkeypatch.setattr(torch_group, "_set_torch_distributed_env_vars", lambda: None)
    monkeypatch.setattr(torch_group, "session_folder", lambda: tmp_path)
    monkeypatch.setattr(ray, "get", joined.extend)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "as it was")
    torch_group.FileConfig().backend_cls().on_start(Workers(nodes, gpus), torch_group.FileConfig(timeout_s=7))
    assert bool(as_ray_has_it) != by_file
    assert (os.environ["GLOO_SOCKET_IFNAME"] == "as it was") != by_file, "of a cluster it is the cluster's network"
    if by_file:
        assert [words["world_rank"] for _, words in joined] == [0, 1]
        (place,) = {words["init_method"] for _, words in joined}
        assert Path(place.removeprefix("file://")).parent == tmp_path
        assert all((words["backend"], words["world_size"], words["timeout_s"]) == ("gloo", 2, 7) for _, words in joined)
