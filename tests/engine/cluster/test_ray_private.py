"""What is done to Ray's own trainer."""

from types import SimpleNamespace

import pytest
import ray

from workflows.engine.cluster import ray_private


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
