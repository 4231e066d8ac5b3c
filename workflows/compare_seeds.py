"""The comparison of a run over several seeds: mean and standard deviation of every row, for the README.

    python workflows/compare_seeds.py -c conf/demo.yaml              seeds 0 1 2, in the configuration's store
    python workflows/compare_seeds.py seeds=0,1,2,3,4 readme=README.md
    python workflows/compare_seeds.py variants=ensemble,offsets,combined,online

A seed changes weights, order and augmentation of every teacher, trial and student, and the search starts anew; faces
and their split stay. `variants` compares sources of soft labels instead of searching: the teachers' ensemble (EHPNet),
the offsets of the base teacher alone, the teachers over offsets, and the base teacher's offsets once more, asked online
instead of stored and moved along. Their students differ in nothing else, so they share one hard twin.

With `readme=FILE` the table replaces what stands between that file's markers `<!-- seeds:NAME -->` and
`<!-- /seeds -->`, NAME being the configuration's name; `variants:NAME` for variants. With `heatmap=FILE` the mean error
of the base teacher's offset ensemble at each (K, d) is drawn into that picture, for the first test set.
"""

import dataclasses
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpe_core.errors import SpecError, check, nearest
from hpe_core.spec.pipeline import PipelineSpec, SearchSpace
from workflows.engine.config import arguments, guarded, load, tell

KINDS = {
    "ensemble": "the teachers' ensemble",
    "offsets": "the base teacher's offsets",
    "combined": "the teachers' ensemble over offsets",
    "online": "the base teacher's offsets, asked about the very view that the student is shown",
}
COLUMNS = ("pitch", "yaw", "roll", "mae", "geodesic")


def with_seed(spec: PipelineSpec, seed: int) -> PipelineSpec:
    """The same run with another seed. Teachers differ from each other by their networks, so they share it."""
    teachers = {name: dataclasses.replace(train, seed=seed) for name, train in spec.teachers.items()}
    return dataclasses.replace(spec, teachers=teachers, student=dataclasses.replace(spec.student, seed=seed))


def variant(spec: PipelineSpec, kind: str) -> PipelineSpec:
    """The run without a search whose student learns from one source of soft labels.

    K and d of the offsets are the configured student's. All kinds name the same label sets in their (unused) search
    space, so that one pass over the faces writes the labels of all; online labels are not stored.
    """
    distill = spec.student.distill
    assert distill is not None
    check(kind in KINDS, f"variants: there is no '{kind}'{nearest(kind, list(KINDS))}")
    chosen = dataclasses.replace(
        distill,
        teachers=(spec.base_teacher,) if kind in ("offsets", "online") else (),
        offset_radius=0 if kind == "ensemble" else distill.offset_radius,
        labels="online" if kind == "online" else "stored",
    )
    space = {
        "distill.teachers": SearchSpace(choice=((), (spec.base_teacher,))),
        "distill.offset_radius": SearchSpace(choice=(0, distill.offset_radius)),
    }
    return dataclasses.replace(
        spec,
        student=dataclasses.replace(spec.student, distill=chosen),
        search=dataclasses.replace(spec.search, trials=0, space=space),
    )


def compare(
    spec: PipelineSpec, seeds: Sequence[int], variants: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """Run every seed (finished ones are skipped).

    Returns a row a test set and network with all its figures, and the cells of the first test set's (K, d) map, their
    errors averaged over the seeds. With variants, each has its own distilled row, named and described by its kind.
    """
    runs, maps = [], []
    for seed in seeds:
        seeded = with_seed(spec, seed)
        kinds = {kind: scores(variant(seeded, kind), f"seed {seed}, {kind}") for kind in variants}
        results = kinds or {"": scores(seeded, f"seed {seed}")}
        runs.append(together(results))
        maps.append(next(iter(results.values()))["heatmap"].get(spec.data.test[0], []))
    rows = []
    for same in zip(*runs, strict=True):
        assert len({(row["test"], row["name"]) for row in same}) == 1, "every seed has the same rows"
        row = {key: same[0][key] for key in ("test", "name", "role", "n", "parameters")}
        row["latency_ms"] = statistics.median(entry["latency_ms"] for entry in same)
        rows.append(row | {key: [float(entry[key]) for entry in same] for key in COLUMNS})
    cells = [{**same[0], "mae": statistics.mean(cell["mae"] for cell in same)} for same in zip(*maps, strict=True)]
    return rows, cells


def together(results: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one seed's variants, by kind: what they share stands once, each distilled student for itself."""
    found: list[dict[str, Any]] = []
    for kind, result in results.items():
        known = {(row["test"], row["name"]) for row in found}
        for row in result["rows"]:
            if kind and row["name"] == "distilled":
                row = row | {"name": f"distilled: {kind}", "role": KINDS[kind]}
            if (row["test"], row["name"]) not in known:
                found.append(row)
    return found


def scores(spec: PipelineSpec, title: str) -> dict[str, Any]:
    """The evaluate stage's result of one run. Nothing is published: every seed would move the registry's aliases."""
    from workflows.full_pipeline import STAGES, run_pipeline

    print(title, file=sys.stderr)
    return run_pipeline(spec, STAGES[:-1]).evaluate


def markdown(spec: PipelineSpec, rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> str:
    """A table a test set, mean ± sd, and what distillation gained over its hard-label twin, seed by seed."""
    lines = []
    for test in dict.fromkeys(row["test"] for row in rows):
        block = {row["name"]: row for row in rows if row["test"] == test}
        first = next(iter(block.values()))
        lines += [f"Test set `{test}`, {first['n']:.0f} faces, seeds {', '.join(map(str, seeds))}, degrees:", ""]
        lines += [
            "| network | what | pitch | yaw | roll | MAE | geodesic | parameters | CPU ms |",
            "|---|---|" + "--:|" * 7,
        ]
        for name, row in block.items():
            figures = " | ".join(spread(row[key]) for key in COLUMNS)
            bold = "**" if name.startswith("distilled") else ""
            cost = f"{row['parameters'] / 1e6:.2f} M | {row['latency_ms']:.1f}"
            lines.append(f"| {bold}{name}{bold} | {row['role']} | {figures} | {cost} |")
        lines.append("")
        for name, row in block.items():
            if name.startswith("distilled"):
                lines.append(gain(name, block["hard"]["mae"], row["mae"]) + "\n")
    return "\n".join(lines).strip()


def spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def gain(name: str, hard: Sequence[float], distilled: Sequence[float]) -> str:
    """One sentence; it says so where distillation lost."""
    shares = [100 * (h - d) / h for h, d in zip(hard, distilled, strict=True)]
    verb = "lowers" if statistics.mean(shares) > 0 else "raises"
    each = ", ".join(f"{share:+.1f} %" for share in shares)
    who = "Distillation" if name == "distilled" else f"Distillation from {KINDS[name.partition(': ')[2]]}"
    return f"{who} {verb} the student's MAE by {abs(statistics.mean(shares)):.1f} % (gain by seed: {each})."


def place_in(path: Path, name: str) -> re.Match[str]:
    """Where the table goes in a page. Raises SpecError where there is no such page or place."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name.partition(':')[0]} -->"
    if not path.is_file():
        raise SpecError(f"readme={path}: there is no such file")
    found = re.search(re.escape(opening) + ".*?" + re.escape(closing), path.read_text(), re.S)
    if found is None:
        raise SpecError(f"{path} has no place for this table: the markers {opening} and {closing}")
    return found


def into_readme(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers."""
    found, page = place_in(path, name), path.read_text()
    table = f"<!-- {name} -->\n{text}\n<!-- /{name.partition(':')[0]} -->"
    path.write_text(page[: found.start()] + table + page[found.end() :])


def main(argv: Sequence[str]) -> int:
    args = arguments(
        argv, __doc__ or "", ("run",), "own keys: seeds=0,1,2 variants=KIND,... readme=FILE heatmap=FILE.png"
    )
    own = {
        word.partition("=")[0]: word.partition("=")[2]
        for word in args.overrides
        if word.startswith(("seeds=", "readme=", "variants=", "heatmap="))
    }
    spec = load(args.config, [word for word in args.overrides if word.partition("=")[0] not in own])
    try:
        seeds = [int(seed) for seed in own.get("seeds", "0,1,2").split(",")]
    except ValueError:
        raise SpecError(f"seeds={own['seeds']} is not a list of whole numbers like 0,1,2") from None
    variants = [kind for kind in own.get("variants", "").split(",") if kind]
    for kind in variants:
        variant(spec, kind)
    place = f"{'variants' if variants else 'seeds'}:{spec.name}"
    if own.get("readme"):
        place_in(Path(own["readme"]), place)
    picture = own.get("heatmap", "")
    if picture:
        check(spec.evaluate.heatmap_radius > 0, f"heatmap={picture}: evaluate.heatmap_radius is 0, so there is none")
        writable = Path(picture).suffix == ".png" and Path(picture).absolute().parent.is_dir()
        check(writable, f"heatmap={picture} is not a .png file in a folder that exists")
    rows, cells = compare(spec, seeds, variants)
    text = markdown(spec, rows, seeds)
    tell(json.dumps(rows) if args.json else text)
    if own.get("readme"):
        into_readme(Path(own["readme"]), place, text)
    if picture:
        from workflows.report.figures import heat_map

        heat_map(spec.data.test[0], spec.base_teacher, cells).savefig(picture, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
