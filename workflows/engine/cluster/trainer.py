"""Ray's trainer of one network, without what our networks have no use for. As it was seen in Ray 2.60."""

from collections.abc import Callable
from typing import Any

from workflows.engine.cluster.ray_private import ANSWER_S, dashboard_address


def trainer_of(workers: int, loop: Callable[..., None], **settings: Any) -> Any:
    """Ray's TorchTrainer of so many workers, which run `loop`; without the actor that serves datasets.

    Of one worker it is TorchTrainer's parent. TorchTrainer sets up a process group, which one worker does not need, and
    imports torch into the driver and every controller, 0.4 GB each. The actor is a process for each network, with
    0.2 GB and two seconds of a core, also where a trainer is given no datasets, as ours are.

    A second actor asks the dashboard whether the controller lives, to free what a dead one holds. Without a dashboard
    it never learns it, and holds up the end of every network: there it is left out.
    """
    import ray
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    parent: Any = DataParallelTrainer
    if workers > 1:
        from ray.train.torch import TorchTrainer

        from workflows.engine.cluster.torch_group import FileConfig

        parent, settings["torch_config"] = TorchTrainer, FileConfig()
    idle: tuple[type, ...] = (DatasetsCallback,)
    if dashboard_address(ray.get_runtime_context().gcs_address, ANSWER_S) is None:
        idle += (PlacementGroupCleanerCallback,)

    class Trainer(parent):
        def _create_default_callbacks(self) -> list[Any]:
            return [one for one in super()._create_default_callbacks() if not isinstance(one, idle)]

    return Trainer(loop, **settings)
