"""What a campaign has to say: each fault with its moments, what came back after how long, and what was lost."""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.system.files import write_atomic, write_json
from workflows.report.page import render
from workflows.storage.code import ROOT
from workflows.tracking.facts import Artifact, RunFacts, git_commit, points_of
from workflows.tracking.sync import sync

JSON, HTML = "receipt.json", "receipt.html"
State = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Hit:
    """One harm: at which moment, to what, and after how many seconds the first new file was there."""

    moment: str
    victim: str
    back_s: float | None


@dataclass(frozen=True)
class Fault:
    """One row of the receipt."""

    name: str
    what: str
    state: State
    hits: tuple[Hit, ...] = ()
    seconds: float = 0.0  # of the whole drill
    lost: str = "nothing"
    why: str = ""  # it was skipped


@dataclass(frozen=True)
class Receipt:
    """All of a campaign."""

    seed: int
    cluster: str
    undisturbed_s: float
    faults: tuple[Fault, ...]
    made_by: dict[str, Any]

    def count(self, state: State) -> int:
        return sum(fault.state == state for fault in self.faults)

    @property
    def verdict(self) -> str:
        tried = len(self.faults) - self.count("skipped")
        left = f", {self.count('skipped')} left out" if self.count("skipped") else ""
        return f"{self.count('passed')} of {tried} faults survived with nothing lost{left}"

    def text(self) -> str:
        """The table for the console."""
        lines = []
        for fault in self.faults:
            back = max((hit.back_s for hit in fault.hits if hit.back_s is not None), default=None)
            told = {"passed": "nothing lost", "failed": f"LOST: {fault.lost}", "skipped": f"left out: {fault.why}"}
            after = "" if back is None else f", back after {back:.0f} s"
            lines.append(f"{fault.name:<23} {fault.state:<8} {fault.seconds:>5.0f} s  {told[fault.state]}{after}")
        return "\n".join([*lines, "", self.verdict])


def machine(nodes: int, cpus: float, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The cluster and the versions, without names of hosts or folders."""
    known = {key: value for key, value in made_by.items() if key != "packages"}
    there = {"nodes": nodes, "places": cpus, "cores here": os.cpu_count()}
    return {"date": time.strftime("%Y-%m-%d"), "commit": git_commit(ROOT), **there, **known, **made_by["packages"]}


def write_receipt(receipt: Receipt, home: Path) -> None:
    """JSON for programs, a page for people."""
    write_json(home / JSON, {**dataclasses.asdict(receipt), "verdict": receipt.verdict})
    write_atomic(home / HTML, render("survival.html.j2", receipt=receipt))


def show_in_mlflow(receipt: Receipt, home: Path, spec: PipelineSpec, began_ms: int) -> str:
    """A run of its own in the experiment, with both files; a sentence."""
    figures = {state: float(receipt.count(state)) for state in ("passed", "failed", "skipped")}
    now = int(1000 * time.time())
    facts = RunFacts(
        key=f"survival/{began_ms}",
        name=f"survive: {receipt.count('passed')} of {len(receipt.faults)}",
        status="FAILED" if receipt.count("failed") else "FINISHED",
        started_ms=began_ms,
        ended_ms=now,
        params={"seed": receipt.seed, "faults": json.dumps([fault.name for fault in receipt.faults])},
        tags={"commit": str(receipt.made_by["commit"]), "config": spec.name},
        points=points_of(figures, 0, now),
        artifacts=(Artifact(JSON, "survival"), Artifact(HTML, "survival")),
        home=home,
    )
    return sync(spec.folder, spec.tracking_uri, spec.mlflow.experiment, [facts]).sentence()
