"""The model card: what the network was taught, what it is for and not for, how good and how fast it is, in which files
it comes, and under which terms, as Markdown.

Code, weights and data have three different owners, so their terms are stated apart. What follows for the
weights is derived from the readers of the training datasets and from the pretrained weights that any
network began with.
"""

from collections.abc import Mapping, Sequence

from hpe_core.datasets.registry import readers
from hpe_core.detection.fit import DetectorFit
from hpe_core.geometry.crop import offset_grid
from hpe_core.geometry.rotation import CONVENTION
from hpe_core.pyfunc import ONNX_FILE
from hpe_core.spec.data import CropSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.training import LabelSet, TrainSpec
from workflows.engine.exported import Exported, Int8
from workflows.engine.results import EvaluateResult, Results, Role, Row, Split


def model_card(
    spec: PipelineSpec,
    results: Results,
    exported: Exported,
    provenance: Mapping[str, str],
) -> str:
    """The card of the champion.

    `results` are the finished stages' (shards, student and evaluate are read), `exported` is what the publish stage
    measured of its files, `provenance` names and values (stage hashes, commit).
    """
    student, evaluated, splits = results.student.spec, results.evaluate, results.shards.splits
    rows, crop = evaluated.rows, spec.data.crop
    parts = [
        f"# {spec.publish.model_name}: head pose from a face crop",
        _opening(spec, student, crop, rows, exported),
        "## Use\n\n" + _use(spec, exported),
        "## For what, and for what not\n\n" + _purpose(spec),
        "## Angles and crop\n\n" + _contract(crop, exported.traced.detector_fit),
        "## How good\n\n" + metrics_table(rows) + "\n\n" + _reading(rows),
        "## Protocol\n\n" + _protocol(spec, evaluated, splits),
        "## How fast\n\n" + latency_lines(exported),
        "## Trained on\n\n" + _data(spec, {name: split.kept for name, split in splits.items()}),
        "## Terms\n\n" + _terms(spec, student),
        "## Files\n\n" + _files(exported),
        "## Provenance\n\n" + "\n".join(f"- {name}: `{value}`" for name, value in provenance.items()),
    ]
    return "\n\n".join(parts) + "\n"


def summary(rows: Sequence[Row]) -> str:
    """The student's score on the first test set, a few letters for lists: 'MAE 4.10'."""
    best = next(row for row in rows if row.role is Role.DISTILLED)
    return f"MAE {best.mae:.2f}"


def metrics_table(rows: Sequence[Row]) -> str:
    """The evaluation as a Markdown table, degrees; one line a network and test set, with the number of
    faces."""
    lines = [
        "| test set | N | network | pitch | yaw | roll | MAE | geodesic | parameters |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        name = f"**{row.name}**" if row.role is Role.DISTILLED else row.name
        numbers = " | ".join(f"{row.scores[key]:.2f}" for key in ("pitch", "yaw", "roll", "mae", "geodesic"))
        size = f"{row.parameters / 1e6:.2f} M"
        lines.append(f"| {row.test} | {row.scores['n']:.0f} | {name}, {row.what} | {numbers} | {size} |")
    return "\n".join(lines)


def _opening(
    spec: PipelineSpec,
    student: TrainSpec,
    crop: CropSpec,
    rows: Sequence[Row],
    exported: Exported,
) -> str:
    scores = "; ".join(
        f"{row.mae:.2f} degrees on {row.test} (N = {row.scores['n']:.0f})" for row in rows if row.role is Role.DISTILLED
    )
    return (
        f"A {student.net.backbone} of {exported.traced.parameters / 1e6:.2f} M parameters that reads "
        f"pitch, yaw and roll off a {crop.size} x {crop.size} face crop. It learnt from the soft labels of "
        f"{taught_by(spec, student)}. Mean absolute error: {scores}."
    )


def labels_of(spec: PipelineSpec, student: TrainSpec) -> LabelSet:
    """The soft labels that the student really learnt from: the search may have chosen others than were configured."""
    return spec.label_set(student)


def taught_by(spec: PipelineSpec, student: TrainSpec) -> str:
    """'the teacher resnet (test_resnet), over 9 windows (K=2, d=2)': the middle of a sentence."""
    labels = labels_of(spec, student)
    names = ", ".join(f"{name} ({spec.teachers[name].net.backbone})" for name in labels.teachers)
    windows = len(offset_grid(labels.radius, labels.step))
    who = f"the teacher {names}" if len(labels.teachers) == 1 else f"{len(labels.teachers)} teachers: {names}"
    return who if windows == 1 else f"{who}, over {windows} windows (K={labels.radius}, d={labels.step})"


def _use(spec: PipelineSpec, exported: Exported) -> str:
    int8 = " or student.int8.onnx" if exported.int8 else ""
    return f"""```python
from hpe_core.predictor import HeadPosePredictor
predictor = HeadPosePredictor.load("{ONNX_FILE}")  #{int8} or this folder, for torch
angles, spread = predictor.predict(image_rgb, [(x1, y1, x2, y2)])  # degrees, one row a face; detected=True: YuNet's box
```

Without this project's code, through MLflow, which brings it along:

```python
model = mlflow.pyfunc.load_model("models:/{spec.publish.model_name}@{spec.publish.alias}")
model.predict(pandas.DataFrame([{{"path": "face.jpg", "x1": x1, "y1": y1, "x2": x2, "y2": y2}}]))
```

`image` takes an encoded picture's bytes in place of `path`; without a box the whole picture is taken for it."""


def _purpose(spec: PipelineSpec) -> str:
    text = f"""- For: where a head points in pictures with known face boxes; gaze and attention studies,
  sorting of pictures, pose-aware cropping, as a small network on a CPU.
- Not for: deciding about people (identity, emotion, honesty, fitness, performance), medical use, or
  safety functions such as driver monitoring without a validation of your own.
- Not measured: whether it errs more for some people (age, sex, skin, glasses, head coverings) than for others, and in
  bad light or motion blur.
- Outside its range: poses beyond +-{spec.data.limit_deg:g} degrees were not trained on; the back of
  a head gets some answer all the same. `spread` grows where it is unsure, and is not calibrated."""
    if not any(readers()[spec.data.datasets[name].reader].photographs for name in spec.data.train):
        photographs = [name for name in spec.data.test if readers()[spec.data.datasets[name].reader].photographs]
        there = f"those of {', '.join(photographs)} below" if photographs else "far above the table's"
        text += f"\n- It has seen rendered heads only. On photographs expect other errors: {there}."
    return text


def _contract(crop: CropSpec, fit: DetectorFit | None) -> str:
    detected = "another kind of box costs accuracy, and how YuNet's fits is not known here"
    if fit is not None:
        detected = (
            f"YuNet's fits after its sides are multiplied by {fit.width:.2f} (width) and {fit.height:.2f} "
            f"(height) and its centre is moved down by {fit.down:.2f} of its height, as `predict(..., "
            "detected=True)` and `workflows/predict.py detector=...` do"
        )
    grown = "grown to a square about its centre" if crop.shape == "square" else "stretched to a square"
    return f"""- Convention: {CONVENTION}.
- In words: order pitch, yaw, roll; positive pitch lifts the nose, positive yaw turns it to the left of the
  picture, positive roll turns the head clockwise on the screen; (0, 0, 0) looks into the camera.
- Crop: the face box times {crop.box_scale:g}, {grown}, resampled once to
  {crop.size} x {crop.size} RGB uint8 with linear sampling (averaged first where the face is more than
  twice as large); outside the picture is black. Normalisation lies inside the network.
- Which box the datasets mean (detector, landmarks) matters: {detected}."""


def _reading(rows: Sequence[Row]) -> str:
    few = sorted({row.test for row in rows if row.scores["n"] < 500})
    text = (
        "Errors are degrees, circular, averaged over faces; MAE is the mean of the three. `hard` is the "
        "same network, "
        "budget and seed trained without teachers: the difference to `distilled` is what distillation was "
        "worth here. "
        "One seed was trained, so differences of the size of a seed's luck mean nothing."
    )
    return text + (f" Test sets below 500 faces ({', '.join(few)}) are small." if few else "")


def _protocol(spec: PipelineSpec, evaluated: EvaluateResult, splits: Mapping[str, Split]) -> str:
    """Under which rules the errors were measured: the named protocol, and which faces were scored."""
    asked = evaluated.protocol
    lines = ["- No published protocol was asked for: compare with care."]
    if asked:
        said = "; ".join(asked.deviations) or "none that the configuration shows"
        lines = [f"- {asked.name}, hash `{asked.hash}`. Deviations of this run: {said}."]
    for name in spec.data.test:
        tested, boxes = splits[f"{name}.test"], evaluated.boxes[name]
        faces = f"N = {tested.kept}, fingerprint of the faces `{tested.fingerprint[:12]}`"
        lines.append(f"- {name}: boxes by {boxes}, {faces}.")
    return "\n".join(lines)


def _data(spec: PipelineSpec, faces: Mapping[str, int]) -> str:
    lines = [
        "| dataset | what | faces to train | to validate | to test | terms |",
        "|---|---|--:|--:|--:|---|",
    ]
    for name in dict.fromkeys([*spec.data.train, *spec.data.test]):
        terms = readers()[spec.data.datasets[name].reader].terms
        counts = [faces.get(f"{name}.{split}", 0) for split in ("train", "val", "test")]
        shown = " | ".join(f"{count:,}" if count else "-" for count in counts)
        lines.append(f"| {name} | {terms.title or spec.data.datasets[name].reader} | {shown} | {terms.allowed} |")
    cites = dict.fromkeys(
        terms.cite
        for name in [*spec.data.train, *spec.data.test]
        if (terms := readers()[spec.data.datasets[name].reader].terms).cite
    )
    return "\n".join(lines) + ("\n\nPlease cite:\n\n" + "\n".join(f"- {cite}." for cite in cites) if cites else "")


def weight_terms(spec: PipelineSpec, student: TrainSpec) -> str:
    """What the training data and pretrained weights allow with the student's weights, without the closing stop."""
    learnt = {name: readers()[spec.data.datasets[name].reader].terms for name in spec.data.train}
    bound = [name for name, terms in learnt.items() if terms.research_only]
    asked = labels_of(spec, student).teachers
    began = [name for name in asked if spec.teachers[name].net.pretrained != "none"]
    began += ["the student"] if student.net.pretrained != "none" else []
    if bound:
        weights = f"research only, because {', '.join(bound)} may be used for research only"
    else:
        weights = "nothing in the training data forbids any use; keep the citations"
    if began:
        weights += f". {', '.join(began)} began with pretrained weights, whose own terms apply too"
    return weights


def _terms(spec: PipelineSpec, student: TrainSpec) -> str:
    return (
        "- Code: Apache-2.0.\n"
        f"- Weights: {weight_terms(spec, student)}.\n"
        "- Data: belongs to its owners, under the terms in the table above; none is shipped here."
    )


def latency_lines(exported: Exported) -> str:
    """The latency table as Markdown, with what it was measured on."""
    batches = list(next(iter(exported.latency_ms.values())))
    lines = [f"| runtime | {' | '.join(f'{name}, ms' for name in batches)} |", f"|---|{'--:|' * len(batches)}"]
    for runtime, row in exported.latency_ms.items():
        lines.append(f"| {runtime} | {' | '.join(f'{row[name]:.2f}' for name in batches)} |")
    where = f" of {exported.cpu}" if exported.cpu else ""
    lines += ["", f"{exported.traced.parameters / 1e6:.2f} M parameters; one core{where}, median of a call."]
    return "\n".join(lines)


def int8_line(int8: Int8) -> str:
    """What the int8 file costs, in one sentence."""
    score = int8.score
    if score is None:
        return f"int8: calibrated on {int8.calibrated_on} validation faces; not scored, for want of test faces"
    margin = "unknown" if score.margin_deg is None else f"+-{score.margin_deg:.3f}"
    return (
        f"int8: MAE {score.float_mae:.2f} -> {score.mae:.2f} ({score.cost_deg:+.3f} degrees, 95 % interval "
        f"{margin}) on {score.faces} test faces; an answer moves by {score.moved_deg:.2f} degrees"
    )


def _files(exported: Exported) -> str:
    onnx, program, timm = exported.traced.onnx, exported.traced.program, exported.timm
    gaps = ", ".join(f"{name} {gap:.1e}" for name, gap in onnx.parity.angles.items())
    lines = [
        f"- `{ONNX_FILE}`, {onnx.bytes / 1e6:.2f} MB, opset {exported.traced.opset}. Input `images` "
        "(batch, size, size, 3) uint8 RGB; outputs `angles` and `spread` (standard deviation) (batch, 3) float32 "
        f"degrees. Parity with torch over {onnx.parity.crops} crops, largest difference in degrees: {gaps} "
        f"(allowed {onnx.parity.allowed:g})."
    ]
    if exported.int8:
        lines.append(f"- `student.int8.onnx`, {exported.int8.bytes / 1e6:.2f} MB. {int8_line(exported.int8)}.")
    lines += [
        f"- `student.pt2`, {program.bytes / 1e6:.2f} MB: the same function for `torch.export.load`, "
        f"{program.parity.worst:.1e} degrees from the network on the same crops.",
        "- `model.safetensors` and `model.json`: the weights and their meaning, for `hpe_core`.",
        f"- `timm/`: {timm.architecture} for timm, {'with' if timm.head else 'without'} the predicting head; its "
        "README says what that form loses.",
        "- `MLmodel`: MLflow's description (pyfunc and onnx), with a signature and an example.",
    ]
    return "\n".join(lines)
