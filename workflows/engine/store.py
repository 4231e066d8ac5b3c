"""The store of a configuration as one object, whether it lies here or elsewhere: plan, checkout, commit.

store = Store.open(stages, spec)          what is finished is known
with store.held():                        nobody else works in it
    plan = store.checkout()               what the stages to be run will read is here and whole
    store.commit(plan["shards"], result)  the manifest is written last, and sent away where the store is elsewhere
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpe_core.errors import SpecError
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build, to_dict
from hpe_core.system.files import write_json
from hpe_core.system.remote import RemoteError
from workflows.engine.plan import Planned, plan
from workflows.engine.results import SCHEMA_VERSION, Results, StageResult
from workflows.engine.stage import Stage
from workflows.storage.begun import BEGUN
from workflows.storage.contents import MANIFEST, drop_damaged, inventory, misfits
from workflows.storage.manifest import finished, now, read_manifest
from workflows.storage.mirror import Mirror, held

Plan = dict[str, Planned]  # by the stages' names, from the top down


@dataclass(frozen=True)
class Checked:
    """What `verify` found of one stage."""

    files: int
    bytes: int
    lost: list[str]  # a sentence for each file that is missing or damaged


class Store:
    """Where the stages of one configuration lie."""

    def __init__(self, stages: Sequence[Stage], spec: PipelineSpec) -> None:
        self.stages, self.spec, self.mirror = tuple(stages), spec, Mirror(spec)

    @classmethod
    def open(cls, stages: Sequence[Stage], spec: PipelineSpec) -> "Store":
        """The store to be looked at, not held. Raises SpecError if it cannot be reached or is of another version."""
        store = cls(stages, spec)
        try:
            store.mirror.look()
        except RemoteError as error:
            raise SpecError(f"store: {error}") from None
        store.check_version()
        return store

    def check_version(self) -> None:
        """Raises SpecError for a store that another version of this program has written; it is left as it is."""
        folders = (file.parent for file in self.spec.folder.glob(f"*/*/{MANIFEST}"))
        written = next(filter(None, map(read_manifest, folders)), None)
        version = SCHEMA_VERSION if written is None else written.get("schema", 1)  # the first version noted none
        if version != SCHEMA_VERSION:
            said = f"is of version {version}, and this program writes version {SCHEMA_VERSION}"
            raise SpecError(f"store {self.spec.store} {said}: choose another store= (its models still load)")

    def plan(self) -> Plan:
        """What each stage would do and why."""
        return {entry.stage.name: entry for entry in plan(self.stages, self.spec, self.mirror.size)}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the store for one run, here and there. Raises StoreHeld with who has it."""
        with held(self.spec) as self.mirror:
            self.check_version()
            yield

    def checkout(self, wanted: Sequence[str] = ()) -> Plan:
        """`plan`, after what the `wanted` stages (all) will read was fetched and hashed. Hold the store."""
        checked: set[str] = set()
        while True:
            planned = self.plan()
            running = [e for name, e in planned.items() if e.action != "skip" and (not wanted or name in wanted)]
            read = {name for e in running for name in e.stage.upstream if planned[name].action == "skip"}
            if read <= checked:
                if any(entry.stage.name in ("teachers", "student") for entry in running):
                    self.mirror.bring_networks()  # one that was trained anywhere is not trained again
                return planned
            for name in read - checked:
                self.mirror.check(planned[name].folder, finished(planned[name].folder)["files"])
            checked |= read

    def commit(self, entry: Planned, result: StageResult, noted: Mapping[str, Any]) -> list[str]:
        """Write the manifest, with what is `noted`, and send the files. Returns a sentence for changed ones."""
        before, files = read_manifest(entry.folder), inventory(entry.folder)
        manifest = {
            "schema": SCHEMA_VERSION,
            "stage": entry.stage.name,
            "hash": entry.hash,
            "finished": now(),
            "host": platform.node(),
            **entry.parts,
            "files": files,
            "result": to_dict(result),
            **noted,
        }
        write_json(entry.folder / MANIFEST, manifest)
        (entry.folder / BEGUN).unlink(missing_ok=True)
        drop_damaged(entry.folder)
        self.mirror.push(entry.folder)
        return [] if before is None else _changed(entry.stage.name, before["files"], files)

    def push_finished(self, planned: Plan) -> None:
        """Send the files of finished stages that could not be sent before."""
        for entry in planned.values():
            if entry.action == "skip":
                self.mirror.push(entry.folder, made=False)

    def results(self, planned: Plan, names: Sequence[str] | None = None) -> Results:
        """The results of finished stages, all by default."""
        wanted = planned if names is None else names
        return Results({name: result_of(planned[name].stage, planned[name].folder) for name in wanted})

    def verify(self) -> dict[str, Checked]:
        """Hash every file of every finished stage. Hold the store."""
        found = {}
        for name, entry in self.plan().items():
            manifest = read_manifest(entry.folder)
            if manifest is not None:
                files = manifest["files"]
                lost = [*misfits(entry.folder, files, self.mirror.size), *self.mirror.check(entry.folder, files)]
                found[name] = Checked(len(files), sum(listed["bytes"] for listed in files.values()), lost)
        return found


def result_of(stage: Stage, folder: Path) -> StageResult:
    """The result of a finished stage."""
    return build(stage.result, finished(folder)["result"], f"result of {stage.name}")


def _changed(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A repaired file should be the file that it was: later stages were made from that one, and are not run again."""
    changed = [place for place in before if place in after and after[place] != before[place]]
    if not changed:
        return []
    more = f" and {len(changed) - 1} more" if changed[1:] else ""
    return [f"  {name}: {changed[0]}{more} came out with other bytes than before; later stages saw the old ones"]
