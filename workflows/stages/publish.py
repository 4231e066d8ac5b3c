"""Stage "publish": the student in every form that somebody may want to run, a model card, the report, and what the
registry is to be told.

The folder `model` is complete in itself, so that `mlflow.pyfunc.load_model("models:/head-pose@champion")` works where
this project is not installed.
"""

from collections.abc import Sequence
from typing import Any

from hpe_core.learning.metrics import deciding
from hpe_core.pyfunc import ONNX_FILE
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import to_dict
from hpe_core.system.files import write_json
from workflows.engine.exported import Exported
from workflows.engine.results import PublishResult, Role, Row
from workflows.engine.stage import StageRun
from workflows.export.model_folder import export_student
from workflows.export.runtimes import ONNX
from workflows.export.timm_folder import README
from workflows.report.card import latency_table, metrics_table, model_card, weight_terms
from workflows.report.origin import origin, receipt
from workflows.report.page import fingerprint
from workflows.report.published import FILE
from workflows.report.text import int8_sentence
from workflows.tracking.facts import Model

CARD_FILE, RECEIPT_FILE = "README.md", "receipt.json"


def depends(spec: PipelineSpec) -> dict[str, Any]:
    """The run's name, how its model is exported and registered, and what the pages say beside their numbers."""
    return {
        "publish": to_dict(spec.publish),
        "export": to_dict(spec.export),
        "name": spec.name,
        "pages": fingerprint(FILE, README),
    }


def run(stage: StageRun) -> PublishResult:
    """Export, describe, report; says what the registry is to be told."""
    from workflows.report.build import build_report  # matplotlib, which --help does not need

    spec, results, model = stage.spec, stage.results, stage.folder / "model"
    report, rows = stage.reporter, stage.results.evaluate.rows
    report.progress("publishing", 0, 5, "steps, exporting")
    exported = export_student(stage, model, weight_terms(spec, results.student.spec))
    report.say(latency_table(exported))
    if exported.int8:
        report.say(int8_sentence(exported.int8))
    facts = origin(stage)
    (model / CARD_FILE).write_text(model_card(spec, results, exported, facts), encoding="utf-8")
    write_json(model / RECEIPT_FILE, receipt(stage, model, facts))
    report.progress("publishing", 2, 5, "steps, drawing")
    page = build_report(stage, exported, facts, stage.folder / "report")
    report.progress("publishing", 5, 5, "steps, published")
    summary = f"MAE {results.evaluate.row(Role.DISTILLED).mae:.2f}"
    registration = Model(
        name=spec.publish.model_name,
        folder=model.name,
        alias=spec.publish.alias,
        contest=contest(stage),
        summary=summary,
        description=metrics_table(rows),
        tags={
            "summary": summary,
            "config": spec.name,
            "backbone": results.student.spec.net.backbone,
            "report": f"{page.parent.name}/{page.name}",
        },
    )
    return PublishResult(
        onnx=f"{model.name}/{ONNX_FILE}",
        report=str(page.relative_to(stage.folder)),
        exported=exported,
        figures=figures(exported, rows),
        registration=registration,
    )


def contest(stage: StageRun) -> tuple[str, float]:
    """What the student is compared by: validation faces and its error on them. The test set crowns nobody."""
    splits = stage.results.shards.splits
    faces = " ".join(splits[f"{name}.val"].fingerprint[:12] for name in sorted(stage.spec.data.train))
    student = stage.results.student.student
    kind = {"val/mae": "MAE", "val/geodesic": "geodesic error"}[deciding(student.history[0], "val/")]
    return f"validation {kind} on {faces}", student.val_error


def figures(exported: Exported, rows: Sequence[Row]) -> dict[str, float]:
    """What MLflow keeps as numbers."""
    onnx, int8 = exported.traced.onnx, exported.int8
    out = {f"onnx/parity_{name}_deg": gap for name, gap in onnx.parity.angles.items()}
    out |= {f"onnx/latency_{name.replace(' ', '_')}_ms": ms for name, ms in exported.latency_ms[ONNX].items()}
    out |= {"onnx/megabytes": onnx.bytes / 1e6}
    if int8:
        known = {"bytes": int8.bytes, "calibrated_on": int8.calibrated_on, **to_dict(int8.score or {})}
        out |= {f"int8/{key}": float(value) for key, value in known.items() if value is not None}
    return out | {f"{row.test}/mae": row.mae for row in rows if row.role is Role.DISTILLED}
