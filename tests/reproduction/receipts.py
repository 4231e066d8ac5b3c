"""A receipt as a finished run leaves it, small and by hand."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpe_core.system.files import write_json
from workflows.engine.results import SCHEMA_VERSION
from workflows.reproduction.receipt import Receipt

MADE_BY = {"commit": "1" * 40, "python": "3.11.9", "processors": ["A 1000"], "packages": {"torch": "2.15.0"}}
SPLIT = {"input": 9, "kept": 8, "quarantined": {"nan": 1}, "filtered": {}, "fingerprint": "f"}
TRIAL = {"trial": "001", "changes": {"optim.lr": 0.1}, "best_val_error": 7.0, "seconds": 3.0, "latency_ms": 1.5}
ROW = {"test": "heads", "name": "distilled", "scores": {"mae": 6.5, "yaw": 6.0}, "latency_ms": 1.5}
RESULTS: dict[str, Any] = {
    "shards": {
        "input": 9,
        "kept": 8,
        "splits": {"heads.train": SPLIT | {"shards": [{"path": "part-0.parquet", "rows": 8, "sha256": "a"}]}},
    },
    "teachers": {"networks": {}},
    "labels": {"sets": ["one"], "fingerprint": "l"},
    "search": {"trials": [TRIAL], "failed": 0},
    "student": {"student": {}},
    "evaluate": {"rows": [ROW]},
    "publish": {},
}


def manifests() -> dict[str, dict[str, Any]]:
    made = {}
    for stage, result in copy.deepcopy(RESULTS).items():
        files = {f"{stage}-net/model.safetensors": {"bytes": 3, "sha256": "w"}, f"{stage}.json": {"sha256": "j"}}
        made[stage] = {
            "schema": SCHEMA_VERSION,
            "hash": f"{stage}-hash",
            "files": files,
            "result": result,
            "code": {f"workflows.stages.{stage}": "c"},
            "made_by": copy.deepcopy(MADE_BY),
        }
    return made


def receipt(change: Callable[[dict[str, dict[str, Any]]], object] = lambda made: None) -> Receipt:
    made = manifests()
    change(made)
    return Receipt("a run", "name: tiny\n", made)


def write_store(store: Path, name: str = "0123", status: str = "FINISHED") -> Path:
    """The same in files; returns the run's folder."""
    for stage, manifest in manifests().items():
        write_json(store / stage / manifest["hash"] / "manifest.json", manifest)
    home = store / "pipeline" / name
    keys = [f"{stage}/{stage}-hash" for stage in RESULTS]
    write_json(home / "run.json", {"status": status, "stages": keys, "tags": {"commit": "2" * 40}})
    (home / "config.yaml").write_text(json.dumps({"name": "tiny"}))
    return home
