"""What is said in plain text: on the console, and in single sentences of the report and the model card."""

from collections.abc import Sequence

from workflows.engine.exported import Int8
from workflows.engine.results import DEGREES, EvaluateResult, Row


def print_tables(result: EvaluateResult) -> str:
    """Every test set whole, then the faces of new people where some are not."""
    return print_table(result.rows) + print_table(result.new_people, " of people who were not trained on")


def print_table(rows: Sequence[Row], whose: str = "") -> str:
    """A block a test set: degrees, millions of parameters, CPU milliseconds."""
    lines = []
    for test in dict.fromkeys(row.test for row in rows):
        block = [row for row in rows if row.test == test]
        lines += [
            "",
            f"test set {test}, {block[0].scores['n']:.0f} faces{whose}",
            f"{'network':<22}{'pitch':>7}{'yaw':>7}{'roll':>7}{'MAE':>7}{'geod.':>7}{'params':>9}{'CPU ms':>8}  what",
        ]
        for row in block:
            numbers = "".join(f"{row.scores[key]:7.2f}" for key in DEGREES)
            lines.append(f"{row.name:<22}{numbers}{row.parameters / 1e6:8.2f}M{row.latency_ms:8.1f}  {row.what}")
    return "\n".join(lines)


def int8_sentence(int8: Int8) -> str:
    """What the int8 file costs, without the closing stop."""
    score = int8.score
    if score is None:
        said = f"int8: calibrated on {int8.calibrated_on} validation faces; not scored, for want of test faces"
        return said + _openvino(int8)
    margin = "unknown" if score.margin_deg is None else f"+-{score.margin_deg:.3f}"
    return (
        f"int8: MAE {score.float_mae:.2f} -> {score.mae:.2f} ({score.cost_deg:+.3f} degrees, 95 % interval "
        f"{margin}) on {score.faces} test faces; an answer moves by {score.moved_deg:.2f} degrees{_openvino(int8)}"
    )


def _openvino(int8: Int8) -> str:
    if int8.openvino_deg is None:
        return ""
    said = f"; OpenVINO's answers lie {int8.openvino_deg:.2f} degrees from ONNX Runtime's"
    return said + (": do not run this file in OpenVINO, run the float file there" if int8.openvino_differs else "")
