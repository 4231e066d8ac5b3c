"""The content-addressed plan: skip what is finished, continue what was cut off, say why.

A stage's folder is `<store>/<stage>/<hash>`, the hash taken over the configuration leaves, the upstream hashes and the
code that its result depends on, all known before anything runs. It is finished when its manifest exists; the manifest
is written last and renamed into place. A stage that was killed finds its own half-done folder again under the same
name, so the same command continues it. A finished stage that has lost a file since, or in which one is damaged
(`contents.py`), is repaired: it runs again in its folder, where its pieces that are whole are kept.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import to_dict
from hpe_core.system.files import json_sha256
from workflows.engine.config import flatten
from workflows.engine.stage import Leaves, Stage
from workflows.storage.begun import cut_off, how_far
from workflows.storage.code import code_hashes
from workflows.storage.contents import Elsewhere, misfits, nowhere
from workflows.storage.manifest import read_manifest

GONE = "absent"  # of a key that only one of two runs has
# Leaves that stages share, by the keys that users know.
KEYS = {"workers": "cluster.workers", "ingest": "data.ingest", "stream_shards": "data.stream_shards"}


@dataclass(frozen=True, eq=False)
class Planned:
    """A stage with its hash worked out: where it will lie, and what it will do and why."""

    stage: Stage
    hash: str
    folder: Path
    leaves: dict[str, Any]
    inputs: dict[str, str]
    code: dict[str, str]
    views: dict[str, str]
    action: Literal["skip", "run", "continue", "repair"]
    reason: str
    seconds: float | None  # that the most alike finished run of the stage took

    @property
    def key(self) -> str:
        return f"{self.stage.name}/{self.hash}"

    @property
    def parts(self) -> dict[str, Any]:
        """What the hash is taken over, as manifests and notes hold it."""
        return {"leaves": self.leaves, "inputs": self.inputs, "code": self.code}

    @property
    def line(self) -> str:
        """The stage in a plan."""
        last = f"; took {self.seconds:.0f} s" if self.action != "skip" and self.seconds is not None else ""
        return f"{self.stage.name:<9} {self.action:<8} {self.hash}  {self.reason}{last}"

    @property
    def row(self) -> dict[str, Any]:
        """The same as scripts read it."""
        stage, took = self.stage.name, self.seconds
        return {"stage": stage, "action": self.action, "hash": self.hash, "reason": self.reason, "took_s": took}


def plan(stages: Sequence[Stage], spec: PipelineSpec, elsewhere: Elsewhere = nowhere) -> list[Planned]:
    """Hash every stage from the top down and compare sizes of finished files, those that lie `elsewhere` included."""
    planned: dict[str, Planned] = {}
    for stage in stages:
        leaves = _leaves(stage.depends, spec)
        inputs = {}
        for name in stage.inputs:
            upstream, _, view = name.partition(":")
            inputs[upstream] = planned[upstream].views[view] if view else planned[upstream].hash
        code = code_hashes(stage.run.__module__)
        digest = _digest(stage.name, leaves, inputs, code)
        views = {name: _digest(stage.name, _leaves(view, spec), inputs, code) for name, view in stage.views.items()}
        folder = spec.folder / stage.name / digest
        manifest = read_manifest(folder)
        lost = [] if manifest is None else misfits(folder, manifest["files"], elsewhere)
        action: Literal["skip", "run", "continue", "repair"] = "skip"
        seconds = None if manifest is None else float(manifest["seconds"])
        if manifest is None:
            new = {"leaves": leaves, "inputs": inputs, "code": code}
            why, seconds = _most_alike(folder.parent, new)
            if not folder.exists():
                why = _left_behind(folder.parent, new) or why
            action, reason = ("continue", "was cut off") if folder.exists() else ("run", why)
        elif lost:
            action, reason = "repair", lost[0] + (f"; and {len(lost) - 1} more" if lost[1:] else "")
        else:
            reason = f"finished {manifest['finished']} in {manifest['seconds']:.0f} s"
        planned[stage.name] = Planned(stage, digest, folder, leaves, inputs, code, views, action, reason, seconds)
    return list(planned.values())


def leaves_of(spec: Any, *drop: str) -> dict[str, Any]:
    """A spec as plain values for hashing, without the named top-level keys."""
    assert dataclasses.is_dataclass(spec)
    return {key: value for key, value in to_dict(spec).items() if key not in drop}


def _leaves(read: Leaves, spec: PipelineSpec) -> dict[str, Any]:
    return flatten(json.loads(json.dumps(read(spec))))


def _digest(*parts: Any) -> str:
    return json_sha256(parts)[:12]


def _most_alike(parent: Path, new: Mapping[str, Mapping[str, Any]]) -> tuple[str, float | None]:
    """Which key, input or module makes this run differ from the most alike finished one, and how long that one took."""
    manifests = [m for m in map(read_manifest, parent.glob("*")) if m is not None]
    if not manifests:
        return "never ran in this store", None
    newest_first = sorted(manifests, key=lambda m: str(m["finished"]), reverse=True)
    alike = min(newest_first, key=lambda old: len(_changes(old, new)))
    return _told(_changes(alike, new)), float(alike["seconds"])


def _left_behind(parent: Path, new: Mapping[str, Mapping[str, Any]]) -> str:
    """What differs from a run of the stage that was cut off, which this one does not go on with; '' without one."""
    begun = cut_off(parent)
    kept = "" if begun is None else how_far(begun)
    if begun is None or not kept:
        return ""
    return f"{_told(_changes(begun.parts, new))}: begins anew, without what was cut off at {begun.date} ({kept})"


def _told(changed: Sequence[str]) -> str:
    more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
    return "; ".join(changed[:4]) + more


def _changes(old: Mapping[str, Any], new: Mapping[str, Mapping[str, Any]]) -> list[str]:
    def differing(part: str) -> list[str]:
        return sorted(key for key in {*new[part], *old[part]} if new[part].get(key, GONE) != old[part].get(key, GONE))

    before, after = old["leaves"], new["leaves"]
    changed = [
        f"{KEYS.get(k, k)} {_short(before.get(k, GONE))} -> {_short(after.get(k, GONE))}" for k in differing("leaves")
    ]
    changed += [f"{name} changed" for name in new["inputs"] if old["inputs"].get(name) != new["inputs"][name]]
    if modules := differing("code"):
        changed.append("code of " + ", ".join(modules[:3]) + (" and more" if len(modules) > 3 else ""))
    return changed


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
