"""The content-addressed stage store: skip what is finished, continue what was cut off, say why.

A stage's folder is `<store>/<stage>/<hash>`, the hash taken over the configuration leaves, the upstream hashes
and the code that its result depends on, all known before anything runs. It is finished when its manifest exists;
the manifest is written last and renamed into place. A stage that was killed finds its own half-done folder again
under the same name, so the same command continues it. A finished stage that has lost a file since, or in which one is
damaged (`contents.py`), is repaired: it runs again in its folder, where its pieces that are whole are kept.

"Code" is the syntax tree, without docstrings and comments, of the stage's module and of every project module that
it imports: editing a comment reruns nothing, editing a loss reruns what was trained with it. Modules that only carry
things or show them (this one, tracking, progress, configuration, the quarantine's sheet) do not count.
"""

import ast
import dataclasses
import fcntl
import functools
import hashlib
import importlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpe_core.errors import SpecError
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.system.files import read_json, write_json
from workflows.engine.config import REPO, flatten
from workflows.engine.contents import MANIFEST, Elsewhere, drop_damaged, inventory, misfits, nowhere
from workflows.tracking.progress import Reporter

if TYPE_CHECKING:
    from workflows.engine.mirror import Mirror

# Rooms, and one module, that carry things or show them: what they do changes no result.
CARRIERS = (
    "hpe_core.errors",
    "hpe_core.spec",
    "hpe_core.system",
    "workflows.engine",
    "workflows.tracking",
    "workflows.sharding.quarantine",
    "workflows.full_pipeline",
)


class StoreHeld(RuntimeError):
    """Another run works in this store; the message says who."""


class StageFailed(RuntimeError):
    """A stage ended in an error; the message names the stage and says how to continue."""


@dataclass(frozen=True)
class Stage:
    """One stage: what it depends on, and where its code is. `leaves` reads the configuration (and input files).

    An input written `shards:train` depends on the `views` part of that stage only: adding a test set makes new
    shards, but retrains nobody.
    """

    name: str
    entry: str  # 'package.module:function', imported only when the stage runs
    inputs: tuple[str, ...]
    leaves: Callable[[PipelineSpec], Mapping[str, Any]]
    views: Mapping[str, Callable[[PipelineSpec], Mapping[str, Any]]] = field(default_factory=dict)

    def upstream(self) -> list[str]:
        return [name.split(":")[0] for name in self.inputs]


@dataclass(frozen=True, eq=False)
class StageRun:
    """What a stage is given: its configuration, its own folder, the finished folders upstream, and a reporter."""

    name: str
    key: str  # '<stage>/<hash>': the name of this run in MLflow and in Ray's storage
    spec: PipelineSpec
    folder: Path
    inputs: dict[str, Path]
    hashes: dict[str, str]  # of the upstream stages, or of the views of them that this stage depends on
    results: dict[str, dict[str, Any]]  # results of the upstream stages, from their manifests
    reporter: Reporter


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
    action: str  # 'skip', 'run', 'continue' or 'repair'
    reason: str

    @property
    def key(self) -> str:
        return f"{self.stage.name}/{self.hash}"


def plan(stages: Sequence[Stage], spec: PipelineSpec, elsewhere: Elsewhere = nowhere) -> list[Planned]:
    """Hash every stage from the top down, and compare sizes of finished files; nothing runs, nothing is written.

    `elsewhere` knows files that a remote store has and that need not be here.
    """
    store = spec.folder
    planned: dict[str, Planned] = {}
    for stage in stages:
        leaves = _leaves(stage.leaves, spec)
        inputs = {}
        for name in stage.inputs:
            upstream, _, view = name.partition(":")
            inputs[upstream] = planned[upstream].views[view] if view else planned[upstream].hash
        code = code_hashes(stage.entry.split(":")[0])
        digest = _digest(stage.name, leaves, inputs, code)
        views = {name: _digest(stage.name, _leaves(view, spec), inputs, code) for name, view in stage.views.items()}
        folder = store / stage.name / digest
        manifest = read_manifest(folder)
        lost = [] if manifest is None else misfits(folder, manifest["files"], elsewhere)
        if manifest is None:
            action = "continue" if folder.exists() else "run"
            reason = "was cut off" if folder.exists() else _why(store / stage.name, leaves, inputs, code)
        elif lost:
            action, reason = "repair", lost[0] + (f"; and {len(lost) - 1} more" if lost[1:] else "")
        else:
            action, reason = "skip", f"finished {manifest['finished']} in {manifest['seconds']:.0f} s"
        planned[stage.name] = Planned(stage, digest, folder, leaves, inputs, code, views, action, reason)
    return list(planned.values())


def plan_checked(
    stages: Sequence[Stage], spec: PipelineSpec, mirror: "Mirror", wanted: Sequence[str] = ()
) -> list[Planned]:
    """`plan`, after every finished stage that a stage to be run will read was hashed, and what is damaged set aside.

    `wanted` names the stages to be run, all by default. Hold the store.
    """
    checked: set[str] = set()
    while True:
        planned = {entry.stage.name: entry for entry in plan(stages, spec, mirror.size)}
        running = [e for name, e in planned.items() if e.action != "skip" and (not wanted or name in wanted)]
        read = {name for e in running for name in e.stage.upstream() if planned[name].action == "skip"}
        if read <= checked:
            return list(planned.values())
        for name in read - checked:
            mirror.check(planned[name].folder, finished(planned[name].folder)["files"])
        checked |= read


def _leaves(read: Callable[[PipelineSpec], Mapping[str, Any]], spec: PipelineSpec) -> dict[str, Any]:
    return flatten(json.loads(json.dumps(read(spec))))


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _why(parent: Path, leaves: dict[str, Any], inputs: dict[str, str], code: dict[str, str]) -> str:
    """Compare with the most alike finished run of the stage: which key, input or module made this one differ."""
    manifests = [m for m in map(read_manifest, parent.glob("*")) if m is not None]
    if not manifests:
        return "never ran in this store"
    newest_first = sorted(manifests, key=lambda m: str(m["finished"]), reverse=True)
    changed = min((_changes(old, leaves, inputs, code) for old in newest_first), key=len)
    return "; ".join(changed[:4]) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")


def _changes(old: dict[str, Any], leaves: dict[str, Any], inputs: dict[str, str], code: dict[str, str]) -> list[str]:
    changed = [
        f"{key} {_short(old['leaves'].get(key, 'absent'))} -> {_short(leaves.get(key, 'absent'))}"
        for key in sorted({*leaves, *old["leaves"]})
        if leaves.get(key, "absent") != old["leaves"].get(key, "absent")
    ]
    changed += [f"{name} changed" for name in inputs if old["inputs"].get(name) != inputs[name]]
    modules = [m for m in sorted({*code, *old["code"]}) if code.get(m) != old["code"].get(m)]
    if modules:
        changed.append("code of " + ", ".join(modules[:3]) + (" and more" if len(modules) > 3 else ""))
    return changed


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def execute(
    planned: Planned,
    spec: PipelineSpec,
    upstream: Mapping[str, Planned],
    reporter: Reporter,
    before_finish: Callable[[dict[str, Any]], None] = lambda result: None,
    machinery: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Run one stage in its folder and write its manifest; returns the stage's result.

    `machinery` is what it ran on, noted for its cost: {"cpus", "gpus"}.
    `before_finish` sees the result before the manifest makes the stage finished: what it does is never skipped.
    """
    planned.folder.mkdir(parents=True, exist_ok=True)
    began, clock = now(), time.monotonic()
    module, function = planned.stage.entry.split(":")
    run = StageRun(
        name=planned.stage.name,
        key=planned.key,
        spec=spec,
        folder=planned.folder,
        inputs={name: upstream[name].folder for name in planned.stage.upstream()},
        hashes=planned.inputs,
        results={name: finished(upstream[name].folder)["result"] for name in planned.stage.upstream()},
        reporter=reporter,
    )
    before = read_manifest(planned.folder)
    result = getattr(importlib.import_module(module), function)(run)
    before_finish(result)
    files = inventory(planned.folder)
    if before is not None:
        _say_changes(planned.stage.name, before["files"], files, reporter)
    manifest = {
        "stage": planned.stage.name,
        "hash": planned.hash,
        "started": began,
        "finished": now(),
        "seconds": time.monotonic() - clock,
        "host": platform.node(),
        "machinery": dict(machinery or {}),
        "leaves": planned.leaves,
        "inputs": planned.inputs,
        "code": planned.code,
        "files": files,
        "result": result,
    }
    write_json(planned.folder / MANIFEST, manifest)
    drop_damaged(planned.folder)
    return result


def _say_changes(name: str, before: Mapping[str, Any], after: Mapping[str, Any], reporter: Reporter) -> None:
    """A repaired file should be the file that it was: later stages were made from that one, and are not run again."""
    changed = [place for place in before if place in after and after[place] != before[place]]
    if changed:
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        reporter.say(
            f"  {name}: {changed[0]}{more} came out with other bytes than before; later stages saw the old ones"
        )


def finished(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} has no manifest: its stage did not finish"
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, or None; a damaged one finishes nothing."""
    try:
        return read_json(folder / MANIFEST)
    except ValueError:
        return None


def now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


@contextmanager
def holding(store: Path) -> Iterator[None]:
    """Hold the store for one run. The lock is the kernel's, so a killed holder frees it.

    Raises StoreHeld, and SpecError for a store that cannot be written or locked.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        (store / ".lock").touch()
    except OSError as error:
        raise SpecError(f"store {store} cannot be used: {error.strerror}") from None
    with open(store / ".lock", "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read(200).strip() or "another process"
            raise StoreHeld(f"store {store} is in use by {holder}; wait for it or choose another store=") from None
        except OSError as error:
            raise SpecError(f"store {store} lies on a disk that knows no locks: {error.strerror}") from None
        with suppress(OSError):  # on a full disk the lock holds all the same, and stages say what they lack
            stream.truncate(0)
            os.write(stream.fileno(), f"process {os.getpid()} on {platform.node()} since {now()}".encode())
        yield


# ---------------------------------------------------------------- code hashes


@functools.cache
def code_hashes(*modules: str) -> dict[str, str]:
    """Modules and every project module that they import, directly or not -> hash of its code without docstrings."""
    found: dict[str, str] = {}
    queue = [*modules]
    while queue:
        name = queue.pop()
        path = module_file(name)
        if name in found or is_carrier(name) or path is None:
            continue
        tree = ast.parse(path.read_text())
        found[name] = hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()[:12]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                queue += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                queue += [node.module, *[f"{node.module}.{alias.name}" for alias in node.names]]
    return found


def is_carrier(name: str) -> bool:
    """Whether a module is one of `CARRIERS` or lies in a room of them."""
    return any(name == carrier or name.startswith(f"{carrier}.") for carrier in CARRIERS)


def module_file(name: str) -> Path | None:
    if name.split(".")[0] not in ("hpe_core", "workflows"):
        return None
    path = REPO / (name.replace(".", "/") + ".py")
    return path if path.is_file() else None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def leaves_of(spec: Any, *drop: str) -> dict[str, Any]:
    """A spec as plain values for hashing, without the named top-level keys."""
    from hpe_core.spec.serde import to_dict

    assert dataclasses.is_dataclass(spec)
    return {key: value for key, value in to_dict(spec).items() if key not in drop}
