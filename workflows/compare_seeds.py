"""Compares a run over several seeds: mean and standard deviation of every row, as a table for a page.

    python workflows/compare_seeds.py -c conf/demo.yaml              seeds 0 1 2, in the configuration's store
    python workflows/compare_seeds.py seeds=0,1,2,3,4 readme=docs/results.md
    python workflows/compare_seeds.py variants=ensemble,offsets,combined,online

A seed changes the weights, order and augmentation of every teacher, trial and student, and starts the search anew;
faces and their split stay. `variants` compares sources of soft labels instead of searching: the teachers' ensemble
(EHPNet), the offsets of the base teacher alone, the teachers over offsets, and the base teacher's offsets once more,
asked online instead of stored and moved along. Their students differ in nothing else, so they share one hard twin.

With `readme=FILE` the table replaces what stands between that file's markers `<!-- seeds:NAME -->` and
`<!-- /seeds -->`, NAME being the configuration's name; `variants:NAME` and `/variants` for variants. With
`heatmap=FILE` the mean error of the base teacher's offset ensemble at each (K, d) is drawn into that picture, for the
first test set.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpe_core.errors import SpecError, check, nearest, say
from hpe_core.spec.pipeline import VARIANT, PipelineSpec, SearchSpace
from workflows.engine import pipeline
from workflows.engine.commandline import parted
from workflows.engine.config import arguments, guarded, load, tell
from workflows.engine.results import DEGREES, Cell, EvaluateResult
from workflows.full_pipeline import STAGES
from workflows.report.comparison import DISTILLED, Compared, into_page, joined, markdown, place_in

KINDS = {
    "ensemble": "the teachers' ensemble",
    "offsets": "the base teacher's offsets",
    "combined": "the teachers' ensemble over offsets",
    "online": "the base teacher's offsets, asked about the very view that the student is shown",
}
OWN = ("seeds", "readme", "variants", "heatmap")
Cells = Sequence[Cell]  # of the (K, d) map


def with_seed(spec: PipelineSpec, seed: int) -> PipelineSpec:
    """The same run with another seed. Teachers differ from each other by their networks, so they share it."""
    teachers = {name: dataclasses.replace(train, seed=seed) for name, train in spec.teachers.items()}
    return dataclasses.replace(spec, teachers=teachers, student=dataclasses.replace(spec.student, seed=seed))


def variant(spec: PipelineSpec, kind: str) -> PipelineSpec:
    """The run without a search that learns from one source. All kinds name the same label sets: written in one pass."""
    distill = spec.student.distill
    assert distill is not None
    check(kind in KINDS, f"variants: there is no '{kind}'{nearest(kind, list(KINDS))}")
    said = f"variants: '{kind}' needs offsets, and student.distill.offset_radius is 0"
    check(kind == "ensemble" or distill.offset_radius > 0, said)
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


def compare(spec: PipelineSpec, seeds: Sequence[int], variants: Sequence[str] = ()) -> tuple[list[Compared], Cells]:
    """A row a test set and network (a variant: a distilled row), and the mean (K, d) map, over runs of every seed."""
    runs, maps = [], []
    for seed, seeded in [(seed, with_seed(spec, seed)) for seed in seeds]:  # all can be had before any is run
        found = {kind: scores(variant(seeded, kind), f"seed {seed}, {kind}") for kind in variants}
        found = found or {"": scores(seeded, f"seed {seed}")}
        runs.append(together({kind: rows for kind, (rows, _) in found.items()}))
        maps.append(next(iter(found.values()))[1])
    cells = [Cell(same[0].K, same[0].d, statistics.mean(cell.mae for cell in same)) for same in zip(*maps, strict=True)]
    return [joined(same) for same in zip(*runs, strict=True)], cells


def together(by_kind: Mapping[str, Sequence[Compared]]) -> list[Compared]:
    """The rows of one seed's variants: what they share stands once, each distilled student for itself."""
    found: dict[tuple[str, str], Compared] = {}
    for kind, rows in by_kind.items():
        for row in rows:
            if kind and row.name == DISTILLED:
                row = dataclasses.replace(row, name=f"{VARIANT} {kind}", role=KINDS[kind])
            found.setdefault((row.test, row.name), row)
    return list(found.values())


def scores(spec: PipelineSpec, title: str) -> tuple[list[Compared], Cells]:
    """The rows and (K, d) map of one run, which is not published: every seed would move the registry's aliases."""
    say(title)
    return read(pipeline.run(STAGES[:-1], spec).evaluate, spec.data.test[0])


def read(evaluated: EvaluateResult, test: str) -> tuple[list[Compared], Cells]:
    """What the comparison takes of the evaluate stage's result."""
    rows = []
    for row in evaluated.rows:
        values = {key: [row.scores[key]] for key in DEGREES} | {"latency_ms": [row.latency_ms]}
        rows.append(Compared(row.test, row.name, row.what, row.scores["n"], row.parameters, values))
    return rows, evaluated.heatmap.get(test, ())


def main(argv: Sequence[str]) -> int:
    own_keys = "own keys: seeds=0,1,2 variants=KIND,... readme=FILE heatmap=FILE.png"
    args = arguments(argv, __doc__ or "", ("run",), own_keys)
    pairs, words = parted(args.overrides, OWN)
    spec = load(args.config, words)
    try:
        seeds = [int(seed) for seed in pairs.get("seeds", "0,1,2").split(",")]
    except ValueError:
        raise SpecError(f"seeds={pairs['seeds']} is not a list of whole numbers like 0,1,2") from None
    check(len({*seeds}) == len(seeds), f"seeds={pairs.get('seeds')} names a seed twice: that is no spread")
    variants = [kind for kind in pairs.get("variants", "").split(",") if kind]
    for kind in variants:
        variant(spec, kind)
    page, picture = pairs.get("readme", ""), pairs.get("heatmap", "")
    place = f"{'variants' if variants else 'seeds'}:{spec.name}"
    if page:
        place_in(Path(page), place)
    if picture:
        check(spec.evaluate.heatmap_radius > 0, f"heatmap={picture}: evaluate.heatmap_radius is 0, so there is none")
        writable = Path(picture).suffix == ".png" and Path(picture).absolute().parent.is_dir()
        check(writable, f"heatmap={picture} is not a .png file in a folder that exists")
    rows, cells = compare(spec, seeds, variants)
    text = markdown(rows, seeds, KINDS)
    tell(json.dumps([row.as_json() for row in rows]) if args.json else text)
    if page:
        into_page(Path(page), place, text)
    if picture:
        from workflows.report.figures import heat_map

        heat_map(spec.data.test[0], spec.base_teacher, cells).savefig(picture, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
