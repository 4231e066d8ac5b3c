"""What the run was for: did distillation help, and is the student any good."""

from dataclasses import dataclass

from hpe_core.learning.interval import half_interval
from workflows.engine.results import Role, Row
from workflows.export.runtimes import ONNX
from workflows.report.card import taught_by
from workflows.report.figures import SHOWN, Predicted
from workflows.report.material import Material, Section


@dataclass(frozen=True)
class Gain:
    """By how much the student's error is smaller than its twin's on one test set: `mean` +- `margin`, degrees; a single
    person has no margin."""

    test: str
    student: Row
    twin: Row
    ensemble: Row
    mean: float
    margin: float | None


def headline(material: Material) -> Section:
    """The student against its hard twin and the teachers' ensemble, a block for each test set."""
    spec, student, evaluated = material.spec, material.results.student.spec, material.results.evaluate
    gains = []
    for test, networks in material.predictions.items():
        student_row, twin, ensemble = (evaluated.row(role, test) for role in SHOWN)
        mean, margin = paired_gain(networks[Role.DISTILLED], networks[Role.HARD])
        gains.append(Gain(test, student_row, twin, ensemble, mean, margin))
    values = {
        "backbone": student.net.backbone,
        "taught_by": taught_by(spec, student),
        "onnx": material.exported.traced.onnx,
        "latency_ms": material.exported.latency_ms[ONNX]["batch 1"],
        "gains": gains,
    }
    return Section("", "headline", values)


def paired_gain(student: Predicted, twin: Predicted) -> tuple[float, float | None]:
    """By how many degrees the student's error is smaller than its twin's on the same faces, and half the interval,
    for which people count; over the faces of which the table has the MAE."""
    assert student.sample_ids == twin.sample_ids, "predictions of one test set share their order"
    gains = twin.ahead.errors - student.ahead.errors
    return float(gains.mean()), half_interval(gains, student.ahead.people)
