"""What is done to Ray's own trainer, and to what its raylets say."""

from types import SimpleNamespace

import pytest
import ray

from workflows.engine.cluster import ray_private

COUNTED = "4 worker processes have been started on node: 1 with address: 2. This could be a result of many actors"


@pytest.mark.parametrize("none", [False, True])
def test_nothing_that_a_raylet_says_stands_among_the_results(monkeypatch, capsys, none):
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)  # put back after the test
    ray_private.tidy_raylet_messages(none=none)
    ray_private.tidy_raylet_messages()  # a second time changes nothing
    for line in ("a worker died", COUNTED):
        data = {"lines": [line], "pid": "raylet", "ip": "", "job": None, "is_err": False, "actor_name": None}
        worker.print_to_stdstream({**data, "task_name": None}, ignore_prefix=False)
    out, err = capsys.readouterr()
    assert out == "" and "many actors" not in err and ("a worker died" in err) != none


@pytest.mark.parametrize(("dashboard", "kept"), [(None, False), ("127.0.0.1:8265", True)])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_trainer_starts_no_actor_that_has_nothing_to_do(monkeypatch, dashboard, kept, workers):
    """None for datasets that are not given. One that asks the dashboard whether the controller lives only where there
    is one: else each network waits at its end for the answer."""
    asked = []
    context = SimpleNamespace(gcs_address="127.0.0.1:6379")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray_private, "dashboard_address", lambda address, _: asked.append(address) or dashboard)
    trainer = ray_private.trainer_class(workers)(print, scaling_config=ray.train.ScalingConfig(num_workers=workers))
    names = {type(one).__name__ for one in trainer._create_default_callbacks()}
    assert asked == ["127.0.0.1:6379"] and names > {"BackendSetupCallback", "AcceleratorSetupCallback"}
    assert "DatasetsCallback" not in names
    assert ("PlacementGroupCleanerCallback" in names) == kept
