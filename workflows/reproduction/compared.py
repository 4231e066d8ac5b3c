"""Two runs of one configuration, side by side: bytes where both are the same, degrees where they are not."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpe_core.spec.network import WEIGHTS
from workflows.reproduction.receipt import Receipt

TIMED = ("latency_ms", "seconds", "time_ms", "epoch_seconds")  # what no second run has again
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One thing that both runs made: the same, or what differs."""

    stage: str
    what: str
    same: bool
    told: str = ""


@dataclass(frozen=True)
class Comparison:
    """All parts from the top down, and by how many degrees the tables' MAE lie apart at most."""

    parts: tuple[Part, ...]
    apart: float

    @property
    def same(self) -> bool:
        return all(part.same for part in self.parts)

    @property
    def data_differ(self) -> bool:
        """Whether the faces themselves are others: not their last bits, but which and how many."""
        return any(part.stage == "shards" and not part.same and part.what == "faces" for part in self.parts)

    def text(self) -> str:
        rows = [(part.stage, part.what, part.told or ("the same" if part.same else "differs")) for part in self.parts]
        wide = max(len(what) for _, what, _ in rows)
        return "\n".join(f"{stage:<9} {what:<{wide}}  {told}" for stage, what, told in rows)


def compare(first: Receipt, second: Receipt) -> Comparison:
    """Every stage that both have: shards, weights, labels, the search, and each figure of the table but times."""
    parts, apart = list[Part](), 0.0
    for stage in first.manifests:
        if stage not in second.manifests:
            continue
        one, two = first.result(stage), second.result(stage)
        if stage == "shards":
            parts += shards(one, two)
        elif stage in ("teachers", "student"):
            parts += weights(stage, *(receipt.manifests[stage]["files"] for receipt in (first, second)))
        elif stage == "labels":
            same = one["fingerprint"] == two["fingerprint"]
            parts.append(Part(stage, f"{len(one['sets'])} sets", same, "the same bytes" if same else "other bytes"))
        elif stage == "search":
            trials = [without_times(result["trials"]) for result in (one, two)]
            parts.append(Part(stage, f"{len(trials[0])} trials", trials[0] == trials[1]))
        elif stage == "evaluate":
            for part, gap in table(one, two):
                parts.append(part)
                apart = max(apart, gap)
    return Comparison(tuple(parts), apart)


def weights(stage: str, *files: Values) -> Iterator[Part]:
    """The weights of each network that either run has."""
    for name in sorted({name for each in files for name in each if name.endswith(WEIGHTS)}):
        one, two = (each.get(name, {}).get("sha256") for each in files)
        yield Part(stage, name.partition("/")[0], one == two, "the same bytes" if one == two else "other weights")


def table(*results: Values) -> Iterator[tuple[Part, float]]:
    """Each row of the table, and by how many degrees its MAE lies apart."""
    one, two = ({(row["test"], row["name"]): row["scores"] for row in result["rows"]} for result in results)
    for key in {**one, **two}:
        scores = one.get(key, {}), two.get(key, {})
        before, now = (known.get("mae", math.inf) for known in scores)
        same, more = scores[0] == scores[1], now - before
        gap = 0.0 if same else abs(more) if math.isfinite(more) else math.inf
        told = f"MAE {before:.2f}" + ("" if same else f", now {now:.2f} ({more:+.3f})")
        yield Part("table", ": ".join(key), same, told), gap


def shards(one: Values, two: Values) -> Iterator[Part]:
    """Which faces there are, then their bytes."""
    counts = [{name: counted(split) for name, split in result["splits"].items()} for result in (one, two)]
    told = f"{one['kept']} of {one['input']} kept"
    told += "" if counts[0] == counts[1] else f", now {two['kept']} of {two['input']}"
    yield Part("shards", "faces", counts[0] == counts[1], told)
    for name, split in one["splits"].items():
        other = two["splits"].get(name, {"shards": []})
        hashes = [{shard["path"]: shard["sha256"] for shard in each["shards"]} for each in (split, other)]
        differing = [path for path, known in hashes[0].items() if hashes[1].get(path) != known]
        same = hashes[0] == hashes[1]
        told = "the same bytes" if same else f"{len(differing)} of {len(hashes[0])} shards have other bytes"
        yield Part("shards", name, same, told)


def counted(split: Values) -> Values:
    return {key: split[key] for key in ("input", "kept", "quarantined", "filtered")}


def without_times(value: Any) -> Any:
    """The same tree without what a clock said."""
    if isinstance(value, Mapping):
        return {key: without_times(entry) for key, entry in value.items() if key not in TIMED}
    return [without_times(entry) for entry in value] if isinstance(value, list | tuple) else value
