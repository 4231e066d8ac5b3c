"""The report: one HTML file that needs nothing else, and every figure as its own PNG beside it.

It reads what the finished stages left (results, predictions.parquet, shards, quarantine.parquet) and
computes no score that the evaluation did not, except the paired difference of the two students: whether
distillation helped is the question of the run, so its answer comes with an interval.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hpe_core.data.rows import read_shard, read_table, shard_files
from hpe_core.datasets.registry import readers
from hpe_core.geometry.crop import Image, window
from hpe_core.geometry.rotation import ANGLE_NAMES
from hpe_core.learning.metrics import AUC_DEG
from workflows.engine.config import as_yaml
from workflows.engine.exported import Exported
from workflows.engine.results import Finalist, LabelsResult, NetworkResult, Role, Row, SearchResult, short
from workflows.engine.stage import StageRun
from workflows.export.runtimes import ONNX
from workflows.report import figures
from workflows.report.card import int8_line, taught_by
from workflows.report.figures import SHOWN, Predicted
from workflows.report.html import Book, esc, table, whole_page
from workflows.report.published import TableRow, beside
from workflows.sharding.accounts import QUARANTINE, Broken
from workflows.sharding.quarantine import SHEET, TABLE, chosen
from workflows.storage.manifest import finished

SAMPLES, WORST, SHOWN_TRIALS, SHOWN_BROKEN = 16, 8, 20, 24
PAGE = "report.html"


def build_report(stage: StageRun, exported: Exported, provenance: Mapping[str, str], folder: Path) -> Path:
    """Write `report.html` and its PNGs into `folder`; returns the page's path.

    `stage` is the publish stage (its `results` and `inputs` name every finished stage), `exported` what it
    measured of its files, `provenance` names and values to print.
    """
    folder.mkdir(parents=True, exist_ok=True)
    book = Book(folder)
    results, rows = stage.results, stage.results.evaluate.rows
    predictions = read_predictions(stage.inputs["evaluate"] / "predictions.parquet")
    opening = header(stage, rows, predictions, exported)
    with_tests = [section_test(book, stage, test, rows, predictions[test]) for test in predictions]
    sections = [
        *with_tests,
        section_papers(stage),
        section_training(book, {**results.teachers.networks, **results.student.networks}),
        section_labels(results.labels, results.evaluate.drift),
        section_search(book, results.search, results.student.finalists),
        section_runtimes(exported),
        section_samples(book, stage),
        section_quarantine(book, stage),
        section_provenance(stage, provenance),
    ]
    (folder / PAGE).write_text(whole_page(f"Head pose: {stage.spec.name}", opening, sections))
    return folder / PAGE


# ---------------------------------------------------------------- sections


def header(
    stage: StageRun, rows: Sequence[Row], predictions: Mapping[str, Mapping[str, Predicted]], exported: Exported
) -> str:
    """The headline: the student against its hard twin and the teachers' ensemble, a block for each test
    set."""
    blocks = []
    for test, networks in predictions.items():
        student, hard, ensemble = (stage.results.evaluate.row(role, test) for role in SHOWN)
        gain, margin = paired_gain(networks[Role.DISTILLED], networks[Role.HARD])
        if abs(gain) <= margin:
            verdict = "Distillation made no difference that these faces can show"
        else:
            verdict = "Distillation helped" if gain > 0 else "Distillation did not help"
        scores = "".join(
            f'<div class="{kind}"><b>{row.mae:.2f}°</b><span>{label}</span><span>{millions(row)} '
            "parameters</span></div>"
            for kind, label, row in (
                ("best", "student, distilled", student),
                ("", "same student, hard labels", hard),
                ("", "teachers’ ensemble", ensemble),
            )
        )
        blocks.append(
            f'<section class="headline"><h2>{esc(test)}, {student.scores["n"]:,.0f} faces: mean absolute error</h2>'
            f'<div class="scores">{scores}</div><p>{verdict}: the student’s error is {abs(gain):.2f}° '
            f"{'lower' if gain >= 0 else 'higher'} than its hard twin’s (95 % interval of the gain "
            f"{gain - margin:+.2f} to {gain + margin:+.2f}°, paired over faces; one seed).</p></section>\n"
        )
    onnx, latency, student_spec = exported.traced.onnx, exported.latency_ms[ONNX], stage.results.student.spec
    return (
        f"<h1>Head pose: {esc(stage.spec.name)}</h1>\n<p class=lead>Student {esc(student_spec.net.backbone)} taught by "
        f"{esc(taught_by(stage.spec, student_spec))}. "
        f"ONNX file {onnx.bytes / 1e6:.1f} MB, {latency['batch 1']:.2f} ms a face on one CPU "
        f"thread; its angles lie within {onnx.parity.worst:.0e}° of torch’s. "
        f"Angles are pitch, yaw, roll in degrees.</p>\n{''.join(blocks)}"
    )


def section_test(book: Book, stage: StageRun, test: str, rows: Sequence[Row], networks: Mapping[str, Predicted]) -> str:
    """Results table, distribution, cost and error by angle, the (K, d) map and the worst faces of one test set."""
    mine = [row for row in rows if row.test == test]
    shown: dict[str, Predicted] = {name: networks[name] for name in SHOWN if name in networks}
    parts = [
        book.chart(
            f"error_cdf_{test}",
            figures.error_cdf(test, shown),
            "Share of faces whose mean error is below x; the last 2 % lie outside.",
        ),
        book.chart(
            f"cost_{test}",
            figures.costs(test, mine),
            "An ensemble costs its members’ sum; the line joins what nothing else beats in both.",
        ),
    ]
    for angle, name in enumerate(ANGLE_NAMES):
        caption = (
            f"Mean error in 15° bins of the true {name}; bins with fewer than {figures.FEWEST} faces are left out. "
            "Bars: number of faces."
        )
        parts.append(book.chart(f"error_by_{name}_{test}", figures.error_by_angle(test, shown, angle), caption))
    cells = stage.results.evaluate.heatmap.get(test)
    if cells:
        base = stage.spec.base_teacher
        caption = (
            f"Teacher {esc(base)} averaged over the windows moved by multiples of d up to K pixels. The "
            "frame is the "
            "best cell; it was picked on this test set, so read it as a picture, not as a score."
        )
        parts.append(book.chart(f"heatmap_{test}", figures.heat_map(test, base, cells), caption))
    worst = worst_faces(book, stage, test, networks[Role.TEACHERS], networks[Role.DISTILLED])
    return (
        f"<section><h2>Test set {esc(test)}</h2>{results_table(mine)}{details_table(mine)}"
        f"{new_people_table(test, stage.results.evaluate.new_people)}"
        f'<div class="grid">{"".join(parts)}</div>{worst}</section>\n'
    )


def new_people_table(test: str, rows: Sequence[Row]) -> str:
    """The same table over the faces of people who were not trained on, where some of the test set's were."""
    mine = [row for row in rows if row.test == test]
    if not mine:
        return ""
    return f"<h3>{mine[0].scores['n']:,.0f} faces of people who were not trained on</h3>{results_table(mine)}"


def results_table(rows: Sequence[Row]) -> str:
    ranges = yaw_ranges(rows)
    keys = ["mae", *ANGLE_NAMES, "geodesic", *ranges]
    best = {key: min(row.scores[key] for row in rows if key in row.scores) for key in keys}

    def cell(row: Row, key: str) -> str:
        if key not in row.scores:
            return "<td>–</td>"
        text = f"{row.scores[key]:.2f}"
        return f"<td><b>{text}</b></td>" if row.scores[key] == best[key] else f"<td>{text}</td>"

    lines = []
    for row in rows:
        kind = "ours" if row.role is Role.DISTILLED else ""
        cost = f"<small class=phone>{millions(row)}, {row.latency_ms:.1f} ms</small>"
        name = f"<th>{esc(row.name)}<small>{esc(row.what)}</small>{cost}</th>"
        cells = "".join(cell(row, key) for key in keys)
        costs = f"<td>{millions(row)}</td><td>{row.latency_ms:.1f}</td>"
        lines.append(f'<tr class="{kind}">{name}{cells}{costs}</tr>')
    names = ["MAE", *ANGLE_NAMES, "geodesic", *ranges.values(), "params", "CPU ms"]
    note = (
        "Degrees; the lowest of a column is bold. CPU ms: one face in eager PyTorch; an ensemble costs its "
        "members’ sum."
    )
    return f"{table(['network', *names], lines, first=True)}<p class=note>{note}</p>"


def yaw_ranges(rows: Sequence[Row]) -> dict[str, str]:
    """Ranges of the true yaw that the rows have an error for -> how a head names them."""
    names = ("yaw 0-30", "yaw 30-60", "yaw 60-99")
    return {name: f"{name.replace('-', '–')}°" for name in names if any(name in row.scores for row in rows)}


def section_papers(stage: StageRun) -> str:
    """Our rows and the papers' in one table, where a protocol was asked for; what deviates from it is said."""
    asked = stage.results.evaluate.protocol
    if not asked:
        return ""
    readers = {name: stage.spec.data.datasets[name].reader for name in stage.spec.data.test}
    together = beside(stage.results.evaluate.rows, asked.name, readers, asked.deviations)
    tables = []
    for test in dict.fromkeys(row.test for row in together):
        mine = [row for row in together if row.test == test]
        if any(row.source != "ours" for row in mine):  # else nobody published anything on this test set
            head = ["network", "MAE", *ANGLE_NAMES, "source", "compare with care"]
            tables.append(f"<h3>{esc(test)}</h3>{table(head, [paper_line(row) for row in mine], first=True)}")
    if not tables:
        return ""
    said = "; ".join(asked.deviations) or "none that the configuration shows"
    boxes = ", ".join(f"{test} by {who}" for test, who in stage.results.evaluate.boxes.items())
    note = f"Protocol {asked.name} ({asked.hash}). Boxes: {boxes}. Deviations of this run: {said}."
    dagger = "<span class=phone>† Measured under another protocol; a wider screen says in what it differs.</span>"
    body = f"{''.join(tables)}<p class=note>{dagger}{esc(note)}</p>"
    return f"<section><h2>Beside the papers</h2>{body}</section>\n"


def paper_line(row: TableRow) -> str:
    """One line, ours or published; a telephone has its source, with a dagger for the mark, below the name."""
    numbers = (row.mae, row.pitch, row.yaw, row.roll)
    cells = "".join("<td>–</td>" if value is None else f"<td>{value:.2f}</td>" for value in numbers)
    below = row.source + " †" * bool(row.mark)
    name = f"<th>{esc(row.name)}<small class=phone>{esc(below)}</small></th>"
    words = f"<td class=text>{esc(row.source)}</td><td class=text>{esc(row.mark)}</td>"
    return f'<tr class="{"ours" if row.source == "ours" else ""}">{name}{cells}{words}</tr>'


DETAILS = {
    "median": "median",
    "p90": "p90",
    "maev": "MAEV",
    "auc": f"AUC {AUC_DEG:g}°",
    "aligned_mae": "aligned MAE",
    "aligned_geodesic": "aligned geodesic",
    "offset_deg": "offset",
}


def details_table(rows: Sequence[Row]) -> str:
    """The distribution of the errors, and the errors that are left after a constant offset of the head's axes."""

    def figures_of(names: Mapping[str, str]) -> str:
        lines = []
        for row in rows:
            cells = "".join(f"<td>{row.scores[key]:.2f}</td>" if key in row.scores else "<td>–</td>" for key in names)
            lines.append(f"<tr><th>{esc(row.name)}</th>{cells}</tr>")
        return table(["network", *names.values()], lines)

    cut_off = f"<div class=phone>{figures_of({'geodesic': 'geodesic', **yaw_ranges(rows)})}</div>"
    note = (
        "Median and p90 of the geodesic error; MAEV: mean angle between the head’s axes; AUC: area under the "
        f"distribution of a face’s mean error up to {AUC_DEG:g}°, 1 is perfect. Aligned: after one rotation of the "
        "head’s axes, found on these very faces, of the size “offset”: what is left without a dataset’s habit."
    )
    return (
        f"<details><summary>Distribution and alignment</summary>{cut_off}{figures_of(DETAILS)}"
        f"<p class=note>{note}</p></details>"
    )


def section_training(book: Book, networks: Mapping[str, NetworkResult]) -> str:
    """What every network cost and reached, and its curves."""
    histories = {name: network.history for name, network in networks.items()}
    lines = [
        f"<tr><th>{esc(name)}</th><td>{network.val_mae:.2f}</td><td>{network.best_epoch}</td>"
        f"<td>{network.epochs}</td><td>{network.seconds:,.0f} s</td></tr>"
        for name, network in networks.items()
    ]
    parts = [
        book.chart(
            "training_validation",
            figures.training_curves(histories, "val/mae", "Validation error", "MAE, degrees"),
            "Validation identities, never the test set. Dots: the epoch that was kept.",
        ),
        book.chart(
            "training_loss",
            figures.training_curves(histories, "train/loss", "Training loss", "loss"),
            "Losses of different kinds: compare each curve with itself only.",
        ),
    ]
    figures_of = table(["network", "val. MAE", "best epoch", "epochs", "time"], lines)
    return f'<section><h2>Training</h2>{figures_of}<div class="grid">{"".join(parts)}</div></section>\n'


def section_labels(labels: LabelsResult, drift: Mapping[str, Mapping[str, float]]) -> str:
    """How good the soft labels are, and what is lost when they are moved with the picture."""
    sets = [f"<tr><th>{esc(name)}</th><td>{mae:.2f}</td></tr>" for name, mae in labels.train_mae.items()]
    moved = [
        f"<tr><th>{esc(kind)}</th><td>{row['moved_deg']:.2f}</td><td>{row['unmoved_deg']:.2f}</td>"
        f"<td>{row['kl']:.3f}</td><td>{row['faces']:.0f}</td></tr>"
        for kind, row in drift.items()
    ]
    note = (
        "Left: error of each label set’s angles on the training faces. Right, on validation faces and over one window: "
        "labels moved with a flipped or turned face, against the teachers asked again about the moved picture, "
        "degrees; beside it labels left as they were."
    )
    right = table(["motion", "moved", "unmoved", "KL, nats", "faces"], moved) if moved else ""
    left = table(["label set", "MAE"], sets) if sets else "<p class=note>None are stored: labels are online.</p>"
    return (
        f'<section><h2>Soft labels</h2><div class="grid"><div>{left}</div><div>{right}</div></div>'
        f"<p class=note>{note}</p></section>\n"
    )


def section_search(book: Book, search: SearchResult, finalists: Sequence[Finalist]) -> str:
    """The trials, best first, their errors against what their networks cost, and who was trained to the end."""
    if not search.trials:
        return "<section><h2>Search</h2><p class=note>None: the student was trained as configured.</p></section>\n"
    trials = search.trials[:SHOWN_TRIALS]
    keys = list(dict.fromkeys(key for trial in trials for key in trial.changes))
    lines = []
    for place, trial in enumerate(trials, start=1):
        kind = "ours" if place == 1 else ""
        changes = "".join(f"<td>{esc(short(trial.changes.get(key, '')))}</td>" for key in keys)
        figures_of = f"<td>{trial.best_val_mae:.2f}</td><td>{trial.latency_ms:.1f}</td><td>{trial.epochs}</td>"
        lines.append(f'<tr class="{kind}"><th>{place}</th>{figures_of}{changes}</tr>')
    more = len(search.trials) - len(trials)
    note = f"{len(search.trials)} trials finished, {search.failed} failed" + (
        f"; {more} more not shown" if more else ""
    )
    head = ["", "val. MAE", "CPU ms", "epochs", *(key.split(".", 1)[-1] for key in keys)]
    note += ". Few epochs: ASHA stopped the trial. Validation identities only."
    if finalists:
        ended = [f"{settings_of(row.changes)}: {row.val_mae:.2f}" for row in finalists]
        note += f" Trained to the end, of which the best is the student: {'; '.join(map(esc, ended))}."
    caption = "Each dot is a trial after its short training; the line joins those that no other beats in both."
    chart = book.chart("pareto", figures.pareto(search.trials), caption)
    body = f'{table(head, lines)}<p class=note>{note}</p><div class="grid">{chart}<div></div></div>'
    return f"<section><h2>Search</h2>{body}</section>\n"


def settings_of(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.split('.', 1)[-1]} {short(value)}" for key, value in changes.items())


def section_runtimes(exported: Exported) -> str:
    """What a call costs in each runtime, and what int8 costs in degrees."""
    latency = exported.latency_ms
    batches = list(latency[ONNX])
    lines = [
        f"<tr><th>{esc(runtime)}</th>{''.join(f'<td>{row[name]:.2f}</td>' for name in batches)}</tr>"
        for runtime, row in latency.items()
    ]
    note = f"Milliseconds of one call on one core; {exported.traced.parameters / 1e6:.2f} M parameters."
    note += f" {int8_line(exported.int8)}." if exported.int8 else ""
    head = ["runtime", *(f"{name}, ms" for name in batches)]
    return f"<section><h2>Latency</h2>{table(head, lines)}<p class=note>{esc(note)}</p></section>\n"


def section_samples(book: Book, stage: StageRun) -> str:
    """Faces of every dataset as the network sees them."""
    data, sheets = stage.spec.data, []
    wanted = [(name, "train") for name in data.train] + [(name, "test") for name in data.test if name not in data.train]
    for name, split in wanted:
        files = shard_files(stage.inputs["shards"], name, split)
        if not files:
            continue
        shard = read_shard(files[0])
        picked = np.unique(np.linspace(0, len(shard) - 1, SAMPLES).round().astype(int))
        sheet = figures.sample_sheet(window(shard.images[picked], data.crop.size), shard.angles[picked])
        caption = f"{esc(name)}, {split}: what the network sees, with the label (pitch, yaw, roll)."
        sheets.append(book.faces(f"samples_{name}_{split}", sheet, caption))
    owners = [
        f"{esc(name)}: {esc(reader.terms.allowed)}"
        for name in dict.fromkeys([*data.train, *data.test])
        if (reader := readers()[data.datasets[name].reader]).photographs
    ]
    rights = f" Pictures of people belong to their owners ({'; '.join(owners)})." if owners else ""
    key = f"<p class=note>Axes: red to the side, green down, blue out of the face.{rights}</p>"
    return f'<section><h2>Sample crops</h2>{key}<div class="grid">{"".join(sheets)}</div></section>\n'


def section_quarantine(book: Book, stage: StageRun) -> str:
    """Counts of every split, and what the quarantined look like."""
    shards, folder = stage.results.shards, stage.inputs["shards"]
    lines = [
        f"<tr><th>{esc(name)}</th><td>{split.input:,}</td><td>{split.kept:,}</td>"
        f"<td>{sum(split.filtered.values()):,}</td><td>{sum(split.quarantined.values()):,}</td>"
        f"<td class=text>{esc(reasons(split.quarantined))}</td></tr>"
        for name, split in shards.splits.items()
    ]
    head = ["split", "listed", "kept", "out of range", "quarantined", "why"]
    note = f"Kept + out of range + quarantined = listed. All of the quarantined: {TABLE} of the shards stage."
    body = f"{table(head, lines)}<p class=note>{note}</p>"
    broken = [Broken(**row) for row in read_table(folder / QUARANTINE).to_pylist()]
    if broken:
        shown = chosen(broken, SHOWN_BROKEN)
        rows = [
            f"<tr><th>{esc(face.reason)}</th><td>{esc(face.dataset)}.{esc(face.split)}</td>"
            f"<td class=text>{esc(shortened(face.path))}</td><td class=text>{esc(shortened(face.detail))}</td></tr>"
            for face in shown
        ]
        said = f"{len(shown)} of {len(broken):,}, of every reason in turn"
        listed = table(["reason", "split", "file", "what is wrong"], rows)
        body += f"<details><summary>The quarantined: {said}</summary>{listed}</details>"
    if (folder / SHEET).exists():
        sheet = cv2.cvtColor(np.asarray(cv2.imread(str(folder / SHEET))), cv2.COLOR_BGR2RGB)
        caption = "What a lenient decoder makes of quarantined files; gray where it makes nothing, or was not asked."
        body += book.faces("quarantine", np.asarray(sheet, np.uint8), caption)
    return f"<section><h2>What became of every face</h2>{body}</section>\n"


def section_provenance(stage: StageRun, provenance: Mapping[str, str]) -> str:
    times, whole = [], dict.fromkeys(("seconds", "cpus", "gpus"), 0.0)
    for name, folder in stage.inputs.items():
        manifest = finished(folder)
        hours, had = manifest["seconds"] / 3600, manifest.get("machinery", {})
        whole["seconds"] += manifest["seconds"]
        for key, count in had.items():
            whole[key] += hours * count
        spent = "".join(f"<td>{hours * had[key]:.3f}</td>" if key in had else "<td>–</td>" for key in ("cpus", "gpus"))
        times.append(
            f"<tr><th>{esc(name)}</th><td>{manifest['seconds']:,.0f} s</td>{spent}"
            f"<td class=text><code>{esc(folder.name)}</code></td></tr>"
        )
    cells = f"<td>{whole['cpus']:.3f}</td><td>{whole['gpus']:.3f}</td>"
    times.append(f"<tr><th>together</th><td>{whole['seconds']:,.0f} s</td>{cells}<td></td></tr>")
    note = "Hours: time by the cores and GPUs of the cluster, used or not; of a continued stage its last go only."
    fingerprints = {f"data {name}": split.fingerprint[:12] for name, split in stage.results.shards.splits.items()}
    known = {name: value for name, value in provenance.items() if not name.startswith("stage ")}
    facts = [
        f"<tr><th>{esc(name)}</th><td class=text><code>{esc(value)}</code></td></tr>"
        for name, value in {**known, **fingerprints, "seeds": seeds(stage)}.items()
    ]
    config = re.sub(r"//[^/@\s]*@", "//", as_yaml(stage.spec))  # a tracking server's password stays out
    return (
        f'<section><h2>Provenance</h2><div class="grid">'
        f"<div>{table(['stage', 'time', 'CPU hours', 'GPU hours', 'hash'], times)}<p class=note>{note}</p></div>"
        f"<div>{table(['', ''], facts)}</div></div><details><summary>Configuration</summary>"
        f"<pre>{esc(config)}</pre></details></section>\n"
    )


def seeds(stage: StageRun) -> str:
    """Every seed that the run drew from, datasets first."""
    spec = stage.spec
    used = [(name, spec.data.datasets[name].seed) for name in dict.fromkeys([*spec.data.train, *spec.data.test])]
    used += [(name, teacher.seed) for name, teacher in spec.teachers.items()]
    return ", ".join(f"{name} {seed}" for name, seed in [*used, ("student", spec.student.seed)])


# ---------------------------------------------------------------- what the sections need


def read_predictions(path: Path) -> dict[str, dict[str, Predicted]]:
    """predictions.parquet -> {test: {network: Predicted}}, in the file's order."""
    columns = read_table(path)
    test, network = (np.array(columns[name].to_pylist(), dtype=object) for name in ("test", "network"))
    ids = np.array(columns["sample_id"].to_pylist(), dtype=object)
    angles = np.stack([columns[name].to_numpy() for name in ANGLE_NAMES], 1).astype(np.float64)
    truth = np.stack([columns[f"true_{name}"].to_numpy() for name in ANGLE_NAMES], 1).astype(np.float64)
    out: dict[str, dict[str, Predicted]] = {}
    for one in dict.fromkeys(test):
        for name in dict.fromkeys(network):
            rows = np.flatnonzero((test == one) & (network == name))
            if len(rows):
                out.setdefault(one, {})[name] = Predicted(list(ids[rows]), angles[rows], truth[rows])
    return out


def paired_gain(student: Predicted, hard: Predicted) -> tuple[float, float]:
    """How much smaller the student's error is than its twin's on the same faces, and the 95 % half width,
    degrees.

    Normal approximation over faces. Faces of one person are alike, so the true interval is somewhat wider.
    """
    assert student.sample_ids == hard.sample_ids, "predictions of one test set share their order"
    gains = hard.errors - student.errors
    margin = 1.96 * float(gains.std(ddof=1)) / np.sqrt(len(gains)) if len(gains) > 1 else float("inf")
    return float(gains.mean()), float(margin)


def worst_faces(
    book: Book, stage: StageRun, test: str, teachers: Predicted, student: Predicted, count: int = WORST
) -> str:
    """The faces with the student's largest mean error, each with the axes of label, teachers and student."""
    assert student.sample_ids == teachers.sample_ids, "predictions of one test set share their order"
    order = np.argsort(-student.errors, kind="stable")[:count]
    crops = dict(crops_of(stage, test, {student.sample_ids[i] for i in order}))
    shown = []
    for place, i in enumerate(order, start=1):
        truth, taught, said = student.truth[i], teachers.angles[i], student.angles[i]
        caption = (
            f"label {figures.angles_text(truth)}; "
            f"teachers {figures.angles_text(taught)}, off {teachers.errors[i]:.0f}°; "
            f"student {figures.angles_text(said)}, off {student.errors[i]:.0f}°"
        )
        picture = figures.with_axes(crops[student.sample_ids[i]], [truth, taught, said])
        shown.append(book.faces(f"worst_{test}_{place}", picture, caption))
    head = "The student’s worst faces: axes of the label, of the teachers’ ensemble and of the student"
    return f'<h3>{head}</h3><div class="gallery">{"".join(shown)}</div>'


def crops_of(stage: StageRun, test: str, wanted: set[str]) -> Iterator[tuple[str, Image]]:
    """(sample id, window) of the wanted faces, one shard in memory at a time."""
    for file in shard_files(stage.inputs["shards"], test, "test"):
        shard = read_shard(file)
        for index, sample_id in enumerate(shard.sample_ids):
            if sample_id in wanted:
                yield sample_id, window(shard.images[index], stage.spec.data.crop.size).copy()


def reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "–"


def shortened(text: str, letters: int = 160) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def millions(row: Row) -> str:
    return f"{row.parameters / 1e6:.2f} M"
