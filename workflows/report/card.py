"""The model card: what the network was taught, what it is for and not for, how good and how fast it is, in which files
it comes, and under which terms, as Markdown (`templates/card.md.j2` says it).

Code, weights and data have three different owners, so their terms are stated apart. What follows for the weights is
derived from the readers of the training datasets and from the pretrained weights that any network began with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpe_core.datasets.base import Terms
from hpe_core.datasets.registry import readers
from hpe_core.geometry.crop import offset_grid
from hpe_core.geometry.rotation import ANGLE_NAMES, CONVENTION
from hpe_core.pyfunc import ONNX_FILE
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.training import TrainSpec
from workflows.engine.exported import Exported
from workflows.engine.results import DEGREES, Results, Role, Row, Split
from workflows.report.markdown import markdown_table
from workflows.report.page import render
from workflows.report.text import int8_sentence

FEW = 500  # faces below which a test set is said to be small


def model_card(spec: PipelineSpec, results: Results, exported: Exported, origin: Mapping[str, str]) -> str:
    """The card of the champion. `exported` is what was measured of its files, `origin` where it came from."""
    student, evaluated, data = results.student.spec, results.evaluate, spec.data
    datasets = [UsedDataset.of(spec, name, results.shards.splits) for name in dict.fromkeys([*data.train, *data.test])]
    return render(
        "card.md.j2",
        spec=spec,
        student=student,
        taught_by=taught_by(spec, student),
        ours=[row for row in evaluated.rows if row.role is Role.DISTILLED],
        metrics=metrics_table(evaluated.rows),
        few=sorted({row.test for row in evaluated.rows if row.scores["n"] < FEW}),
        few_faces=FEW,
        evaluated=evaluated,
        exported=exported,
        latency=latency_table(exported),
        int8=int8_sentence(exported.int8) if exported.int8 else "",
        onnx_file=ONNX_FILE,
        convention=CONVENTION,
        datasets=datasets_table(datasets),
        photographs=[used.name for used in datasets if used.photographs and used.name in data.test],
        rendered_only=not any(used.photographs for used in datasets if used.name in data.train),
        citations=list(dict.fromkeys(used.terms.cite for used in datasets if used.terms.cite)),
        weight_terms=weight_terms(spec, student),
        splits=results.shards.splits,
        origin=origin,
    )


@dataclass(frozen=True)
class UsedDataset:
    """A dataset of the run, its terms, whether it shows people, and how many faces were kept: train, val, test."""

    name: str
    reader: str
    terms: Terms
    photographs: bool
    faces: tuple[int, ...]

    @classmethod
    def of(cls, spec: PipelineSpec, name: str, splits: Mapping[str, Split]) -> "UsedDataset":
        reader = readers()[spec.data.datasets[name].reader]
        found = (splits.get(f"{name}.{split}") for split in ("train", "val", "test"))
        faces = tuple(split.kept if split else 0 for split in found)
        return cls(name, reader.name, reader.terms, reader.photographs, faces)


def metrics_table(rows: Sequence[Row]) -> str:
    """The evaluation as a Markdown table, degrees; one line a network and test set, with the number of faces."""
    lines = []
    for row in rows:
        name = f"**{row.name}**" if row.role is Role.DISTILLED else row.name
        scores = [f"{row.scores[key]:.2f}" for key in DEGREES]
        faces, size = f"{row.scores['n']:.0f}", f"{row.parameters / 1e6:.2f} M"
        lines.append([row.test, faces, f"{name}, {row.what}", *scores, size])
    head = ("test set", "N", "network", *ANGLE_NAMES, "MAE", "geodesic", "parameters")
    return markdown_table("lrlrrrrrr", head, lines)


def latency_table(exported: Exported) -> str:
    """The latencies as a Markdown table, with what they were measured on."""
    batches = list(next(iter(exported.latency_ms.values())))
    lines = [[runtime, *(f"{row[batch]:.2f}" for batch in batches)] for runtime, row in exported.latency_ms.items()]
    table = markdown_table("l" + "r" * len(batches), ["runtime", *(f"{batch}, ms" for batch in batches)], lines)
    where = f" of {exported.cpu}" if exported.cpu else ""
    return f"{table}\n\n{exported.traced.parameters / 1e6:.2f} M parameters; one core{where}, median of a call."


def datasets_table(datasets: Sequence[UsedDataset]) -> str:
    """What the network was taught and tested with, and the terms, as a Markdown table."""
    lines = [
        [used.name, used.terms.title or used.reader, *(f"{n:,}" if n else "-" for n in used.faces), used.terms.allowed]
        for used in datasets
    ]
    head = ("dataset", "what", "faces to train", "to validate", "to test", "terms")
    return markdown_table("llrrrl", head, lines)


def taught_by(spec: PipelineSpec, student: TrainSpec) -> str:
    """'the teacher resnet (test_resnet), over 9 windows (K=2, d=2)': the middle of a sentence."""
    labels = spec.label_set(student)  # the search may have chosen others than were configured
    names = ", ".join(f"{name} ({spec.teachers[name].net.backbone})" for name in labels.teachers)
    windows = len(offset_grid(*labels.offsets))
    who = f"the teacher {names}" if len(labels.teachers) == 1 else f"{len(labels.teachers)} teachers: {names}"
    who += f", over {windows} windows (K={labels.radius}, d={labels.step})" if windows > 1 else ""
    return who + (" and the mirror image" if labels.mirrored else "")


def weight_terms(spec: PipelineSpec, student: TrainSpec) -> str:
    """What the training data and pretrained weights allow with the student's weights, without the closing stop."""
    bound = [name for name in spec.data.train if readers()[spec.data.datasets[name].reader].terms.research_only]
    nets = {name: spec.teachers[name] for name in spec.label_set(student).teachers} | {"the student": student}
    began = [name for name, net in nets.items() if net.net.pretrained != "none" or net.start]
    if bound:
        weights = f"research only, because {', '.join(bound)} may be used for research only"
    else:
        weights = "nothing in the training data forbids any use; keep the citations"
    if began:
        weights += f". {', '.join(began)} began with pretrained weights, whose own terms apply too"
    return weights
