"""The runs of a store, read from its files alone: whole runs, their stages, and the networks and trials of those."""

import dataclasses
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpe_core.system.files import known_json
from workflows.tracking.facts import RunFacts, Status


def facts_of(store: Path, held: bool = False) -> list[RunFacts]:
    """What the store says, parents before children, older runs before newer ones.

    `held` says that a process works in the store. At most one run is its; every other that says RUNNING was killed. A
    stage belongs to the run that made it, whichever runs read it later.
    """
    told = {file: tree for file in store.glob("pipeline/*/run.json") if (tree := known_json(file))}
    files = sorted(told, key=lambda file: (told[file]["started_ms"], told[file]["key"]))
    alive = [file for file in files if told[file]["status"] == "RUNNING" and held and not _is_gone(told[file])][-1:]
    runs: dict[str, RunFacts] = {}
    makers: dict[str, str] = {}  # of each stage: the last run that did not find it finished
    for file in files:
        stages, reused = told[file]["stages"], told[file]["reused"]
        run = RunFacts.from_json(told[file], file.parent)
        run = dataclasses.replace(run, tags={**run.tags, **{f"reused.{key.split('/')[0]}": key for key in reused}})
        if run.status == "RUNNING" and file not in alive:
            run = dataclasses.replace(run, status="KILLED", ended_ms=int(file.stat().st_mtime * 1000))
        runs[run.key] = run
        makers |= {key: run.key for key in stages if key not in reused or key not in makers}
    begun: list[list[RunFacts]] = []
    ended: dict[str, int] = {}  # of each run: when its last stage so far was done
    for key, maker in makers.items():
        if found := _stage(store / key, key, runs, maker, ended.get(maker, 0)):
            begun.append(found)
            ended[maker] = found[0].ended_ms or 0
    return [*runs.values(), *(found[0] for found in begun), *(child for found in begun for child in found[1:])]


def _is_gone(tree: Mapping[str, Any]) -> bool:
    """Whether the process of a run is known to have ended: it was one of this machine, and is not there."""
    try:
        os.kill(tree["pid"], 0)
    except OSError as error:  # PermissionError: somebody else's, and there
        return isinstance(error, ProcessLookupError) and bool(tree["host"] == platform.node())
    return False


def _stage(home: Path, key: str, runs: Mapping[str, RunFacts], maker: str, since_ms: int) -> list[RunFacts]:
    """A stage and its children; nothing of one that has not begun. `since_ms`: when the stage before it ended."""
    manifest, failed = (known_json(home / name) or {} for name in ("manifest.json", "failed.json"))
    noted = manifest or failed
    run, children = runs[maker], list[RunFacts]()
    if "told" in noted:
        stage, *children = (RunFacts.from_json(tree, home) for tree in (noted["told"], *noted.get("children", ())))
        run = runs.get(stage.parent or "", run)
    elif home.is_dir():
        stopped: Status = "FINISHED" if manifest else "FAILED" if failed else "KILLED"
        status: Status = "RUNNING" if run.status == "RUNNING" and not noted else stopped
        ended = None if status == "RUNNING" else noted.get("time_ms", run.ended_ms)
        name, began = key.split("/")[0], max(run.started_ms, since_ms)
        stage = RunFacts(key, name, run.key, status, began, ended, tags={"stage": name}, home=home)
    else:
        return []
    common = {"commit": run.tags["commit"]} if "commit" in run.tags else {}
    error = {"error": failed["error"]} if failed and not manifest else {}
    stage = dataclasses.replace(stage, parent=run.key, tags={**stage.tags, **error})
    return [dataclasses.replace(each, tags={**common, **each.tags}) for each in (stage, *children)]
