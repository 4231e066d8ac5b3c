"""Stores, facts and MLflow servers for the tests of tracking."""

import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workflows.tracking.facts import Artifact, Model, Point, RunFacts

EXPERIMENT = "head-pose"


def uri_of(store: Path) -> str:
    return f"sqlite:///{store}/mlflow.db"


def runs_by_key(client: Any, experiment: str = EXPERIMENT) -> dict[str, Any]:
    """All runs by their key; fails where two share one."""
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    runs = {run.data.tags["hpe.key"]: run for run in found}
    assert len(runs) == len(found), sorted(run.data.tags["hpe.key"] for run in found)
    return runs


def history(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))


def loss(count: int) -> tuple[Point, ...]:
    return tuple(Point("loss", 1 / (step + 1), step, 1_700_000_000_000 + step) for step in range(count))


def model_in(home: Path, error: float = 4.1, contest: str = "faces A", tags: Mapping[str, str] = {}) -> Model:
    """A model whose folder is there."""
    (home / "model").mkdir(parents=True, exist_ok=True)
    (home / "model" / "student.onnx").write_bytes(b"onnx")
    table = f"| MAE |\n|---|\n| {error:.2f} |"
    return Model("head-pose", "model", "champion", (contest, error), table, f"MAE {error:.2f}", tags)


def told(home: Path, points: int = 30) -> list[RunFacts]:
    """A whole run with one stage and one network, with everything that a run may say."""
    run = RunFacts("pipeline/1", "MAE 4.10 · demo", None, "FINISHED", 1000, 9000, tags={"commit": "c0ffee"})
    artifacts = (Artifact("notes.txt", "kept"), Artifact("model"))
    (home / "notes.txt").parent.mkdir(parents=True, exist_ok=True)
    (home / "notes.txt").write_text("notes")
    stage = RunFacts(
        *("publish/1", "publish", "pipeline/1", "FINISHED", 2000, 8000),
        *({"net": {"name": "resnet", "bins": [1, 2]}, "rows": [{"x": None}]}, {"stage": "publish"}),
        *(loss(2), artifacts, model_in(home), home),
    )
    params = {f"p{number}": number for number in range(150)}
    network = RunFacts("publish/1/a", "publish: a", "publish/1", "FINISHED", 2000, 7000, params, {}, loss(points))
    return [run, stage, network]


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


def free_port() -> int:
    for port in range(27100, 27400):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")
