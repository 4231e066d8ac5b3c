"""The doctor's look at one dataset: what is there, what is rejected, how faces are turned, whose convention it is.

Listing is complete; decoding, and with it the check against landmarks, is of at most `faces` faces, drawn by hash from
the whole archive, so that the first folder is not taken for all.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpe_core.data.rows import stored_image
from hpe_core.datasets.base import OUT_OF_RANGE, DatasetError, FaceRef, FaceRow, Rejected, Source, census, share_of
from hpe_core.datasets.decoding.pictures import read_bytes
from hpe_core.datasets.files import Archive, within
from hpe_core.datasets.plan import DatasetPlan, plan_dataset
from hpe_core.datasets.registry import boxes_of, open_source
from hpe_core.datasets.sandbox import FACE_TIMEOUT_S, Sandbox, load_directly
from hpe_core.geometry.convention import to_ours
from hpe_core.geometry.crop import encoded, window
from hpe_core.geometry.rotation import ANGLE_NAMES, YAW
from hpe_core.render.person.anatomy import solve_pose
from hpe_core.spec.data import ConventionSpec, DatasetSpec, DataSpec
from workflows.checks.convention import Verdict, check_labels, in_words, settings
from workflows.checks.findings import Finding
from workflows.checks.numbers import number_findings
from workflows.export.faces import evenly
from workflows.prediction.media.pictures import orientation
from workflows.sharding.accounts import FEW

SHOWN = 24  # faces on the contact sheet
HEAD = 1 << 18  # bytes of a picture in which its EXIF orientation stands
BARS = " ▁▂▃▄▅▆▇█"
MARKS = np.arange(-100, 101, 10)  # edges of the histogram in letters, degrees


@dataclass(frozen=True, eq=False)
class Examined:
    """A dataset as the doctor saw it. Counts are of faces; `report` is what `--json` prints."""

    name: str
    spec: DatasetSpec
    findings: tuple[Finding, ...]
    found: int = 0
    whole: int | None = None
    census: str = ""
    missing: tuple[str, ...] = ()  # parts of the archive that are not there, or not whole
    splits: dict[str, int] = field(default_factory=dict)
    plan: DatasetPlan | None = None  # None: it has no role, or cannot be split
    looked_at: int = 0
    kept: tuple[FaceRow, ...] = ()
    poses: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))
    filtered: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    verdict: Verdict | None = None  # None: the dataset carries no landmarks
    row_bytes: float = 0.0  # of a stored face, mean over those looked at

    @property
    def boxes(self) -> str:
        """Whose they are: the one rule's, an archive's, a file's, a detector's."""
        spec = self.spec
        return spec.detector.model if spec.detector else spec.boxes or boxes_of(spec) or "the table's"

    @property
    def report(self) -> dict[str, Any]:
        verdict = None
        if self.verdict is not None:
            advice = settings(self.verdict.best, self.spec.convention)
            figures = {key: None if value != value else value for key, value in asdict(self.verdict).items()}
            verdict = figures | {"set": advice}  # a figure that was not taken is null: JSON knows no NaN
        angles = {
            name: {"mean": float(values.mean()), "min": float(values.min()), "max": float(values.max())}
            | {"histogram": np.histogram(values, MARKS)[0].tolist()}
            for name, values in zip(ANGLE_NAMES, self.poses.T, strict=True)
            if len(values)
        }
        names = ("boxes", "found", "whole", "missing", "splits", "looked_at", "filtered", "rejected", "examples")
        return {"reader": self.spec.reader, "root": self.spec.root, "kept": len(self.kept), "angles": angles} | {
            **{name: getattr(self, name) for name in (*names, "row_bytes")},
            "convention": verdict,
        }


def examine(name: str, spec: DatasetSpec, data: DataSpec, faces: int, prefix: str, *, planned: bool) -> Examined:
    """Look at one dataset. `prefix` is the path of its keys, as in `data.datasets.aflw.`; faces=0 decodes all.

    `planned`: it has a role in `data`, so its split is looked at, too.
    """
    source = open_source(replace(spec, convention=ConventionSpec()))  # labels as the reader gives them
    try:
        refs = sorted(source.refs())
        missing = source.reader.missing_parts(refs)
    except (DatasetError, OSError) as error:
        return Examined(name, spec, (Finding("error", name, str(error)),))
    if not refs:
        return Examined(name, spec, (Finding("error", name, f"the reader {spec.reader} finds no face in {spec.root}"),))
    findings: list[Finding] = []
    splits, plan = _splits(name, source, data, findings) if planned else ({}, None)
    chosen = sample(refs, faces)
    kept, rejected = _load(source, chosen, data)
    findings += _table_findings(name, source, refs, {face.sample_id for face in kept}, splits)
    raw = np.array([face.pose for face in kept]).reshape(-1, 3)
    verdict = None
    if any(face.landmarks is not None for face in kept) and not source.reader.labels_from_landmarks:
        solved = [_solved(face) for face in kept]
        fits = [i for i, pose in enumerate(solved) if pose is not None]
        verdict = check_labels(raw[fits], np.array([solved[i] for i in fits]).reshape(-1, 3, 3), spec.convention)
        findings += convention_findings(name, verdict, spec.convention, prefix)
    poses = np.asarray(to_ours(raw, spec.convention))
    blind = verdict is None or verdict.kind == "too_few_faces"
    findings += number_findings(name, raw, spec.convention, data.limit_deg, prefix, units=blind)
    reasons: Counter[str] = Counter(face.reason for face in rejected)
    findings += _reject_findings(name, reasons, len(chosen), data)
    stored = [len(stored_image(face.crop.pixels, data.encoding)) for face in kept]
    whole = source.reader.whole
    if whole is not None and (missing or len(refs) != whole):
        text = census(source, len(refs)) if len(refs) != whole else f"missing: {', '.join(missing)}"
        findings.append(Finding("warning", name, text))
    return Examined(
        name,
        spec,
        tuple(findings),
        found=len(refs),
        whole=whole,
        census=census(source, len(refs)),
        missing=tuple(missing),
        splits=splits,
        plan=plan,
        looked_at=len(chosen),
        kept=tuple(kept),
        poses=poses,
        filtered=int((np.abs(poses) > data.limit_deg).any(axis=1).sum()),
        rejected=dict(reasons.most_common()),
        examples={face.reason: face.detail for face in reversed(rejected)},
        verdict=verdict,
        row_bytes=sum(stored) / max(1, len(stored)),
    )


def sample(refs: list[FaceRef], faces: int) -> list[FaceRef]:
    """At most `faces` of them (0: all), from everywhere, always the same ones, in order."""
    if not 0 < faces < len(refs):
        return refs
    return sorted(sorted(refs, key=lambda ref: (share_of(ref.sample_id, 0), ref))[:faces])


def _splits(
    name: str, source: Source, data: DataSpec, findings: list[Finding]
) -> tuple[dict[str, int], DatasetPlan | None]:
    """Faces of every split that is built, and the plan; what the shards stage would refuse becomes a finding."""
    try:
        plan = plan_dataset(name, source, data)
    except DatasetError as error:
        findings.append(Finding("error", name, str(error).removeprefix(f"dataset '{name}': ")))
        return {}, None
    counts: Counter[str] = Counter()
    for job in plan.jobs:
        counts[job.split] += job.count
    if plan.repeated:
        text = f"{len(plan.repeated):,} sample ids occur more than once, e.g. {plan.repeated[0][1].sample_id}"
        findings.append(Finding("warning", name, text))
    return dict(counts), plan


def _table_findings(
    name: str, source: Source, refs: Sequence[FaceRef], kept: set[str], splits: dict[str, int]
) -> list[Finding]:
    """What only the owner of a table knows: who is who, and which way up a picture was labelled."""
    reader, findings = source.reader, list[Finding]()
    if reader.own_boxes is not None or not isinstance(reader, Archive):
        return findings
    groups, pictures = {ref.group for ref in refs if ref.key}, {ref.key for ref in refs if ref.key}
    if {"train", "test"} <= splits.keys() and len(groups) == len(pictures) and not any(ref.split for ref in refs):
        text = f"each of its {len(pictures):,} pictures counts as a person of its own: where several show one, name the"
        findings.append(Finding("warning", name, f"{text} person in a column group, or a person is on both sides"))
    shown = sorted({ref.key for ref in refs if ref.sample_id in kept})
    if turned := sum(_orientation(reader, key) != 1 for key in shown):
        text = f"{turned:,} of {len(shown):,} pictures have an EXIF orientation, which is not applied"
        findings.append(Finding("warning", name, f"{text}: boxes and angles must be those of the pixels as stored"))
    return findings


def _orientation(reader: Archive, key: str) -> int:
    """By EXIF, of a picture that was decoded before."""
    try:
        return orientation(read_bytes(within(reader.folder, key, reader.spec.links), head=HEAD))
    except Rejected:  # it went in the meantime
        return 1


def _load(source: Source, refs: list[FaceRef], data: DataSpec) -> tuple[list[FaceRow], list[Rejected]]:
    if source.reader.risky:
        with Sandbox(source, data.crop, timeout_s=FACE_TIMEOUT_S) as sandbox:
            answers = list(sandbox.load_many(refs))
    else:
        answers = list(load_directly(source, data.crop, refs))
    kept = [answer for answer in answers if isinstance(answer, FaceRow)]
    return kept, [answer for answer in answers if isinstance(answer, Rejected)]


def _solved(face: FaceRow) -> NDArray[np.float64] | None:
    """The pose that a face's landmarks give; in pixels of the picture, which a stretched crop has not."""
    if face.landmarks is None:
        return None
    return solve_pose(face.landmarks[:, :2] * [face.crop.scale_x, face.crop.scale_y], face.landmarks[:, 2])


def convention_findings(name: str, verdict: Verdict, configured: ConventionSpec, prefix: str) -> list[Finding]:
    """What has to be done about the labels, with the evidence."""
    if verdict.kind == "wrong":
        changes = settings(verdict.best, configured)
        keys = " ".join(f"{prefix}convention.{key}={_yaml(value)}" for key, value in changes.items())
        text = (
            f"{in_words(verdict.best)}: set {keys} (labels lie {verdict.error:.1f} degrees from the poses that their "
            f"landmarks give, {verdict.best_error:.1f} when set; {verdict.prefer} of {verdict.faces} faces prefer it)"
        )
    elif verdict.kind == "mixed":
        text = (
            f"the labels of {verdict.prefer} of {verdict.faces} faces fit their landmarks far better read so: "
            f"{in_words(verdict.best)}; others far worse: they are of two conventions, which no key mends"
        )
    elif verdict.kind == "unexplained":
        text = (
            f"labels lie {verdict.error:.1f} degrees from the poses that their landmarks give ({verdict.faces} faces), "
            f"and no convention is nearer than {verdict.best_error:.1f}: labels or landmarks are of other faces"
        )
    elif verdict.kind == "landmarks_mirrored":
        text = "landmarks are numbered from the other side (point 0 lies on the wrong cheek); the labels stay unchecked"
    else:
        return []
    return [Finding("error", name, text)]


def _reject_findings(name: str, reasons: Counter[str], looked_at: int, data: DataSpec) -> list[Finding]:
    bad = reasons.total()
    if not bad:
        return []
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    text = f"{bad} of {looked_at} faces are rejected ({listed})"
    if bad == looked_at:
        return [Finding("error", name, text)]
    if looked_at >= FEW and bad > data.max_bad_share * looked_at:
        return [Finding("error", name, f"{text}, more than data.max_bad_share {data.max_bad_share:g} allows")]
    return [Finding("warning", name, text)]


def in_lines(seen: Examined) -> list[str]:
    """A dataset for the eye."""
    lines = [f"{seen.name}: reader {seen.spec.reader}{', ' + seen.spec.root if seen.spec.root else ''}"]
    if not seen.found:
        return lines
    lines.append(f"  found       {seen.census}")
    if seen.missing:
        lines.append(f"  missing     {', '.join(seen.missing)}")
    if seen.splits:
        lines.append(f"  split       {', '.join(f'{count:,} {split}' for split, count in seen.splits.items())}")
    lines.append(f"  boxes       {seen.boxes}")
    limit = "" if seen.looked_at == seen.found else " (faces=0 looks at all)"
    good = f"{len(seen.kept) - seen.filtered:,} good, {seen.filtered:,} {OUT_OF_RANGE}"
    looked = f"{seen.looked_at:,} of {seen.found:,}{limit}"
    lines.append(f"  looked at   {looked}: {good}, {sum(seen.rejected.values()):,} rejected")
    for reason, count in seen.rejected.items():
        lines.append(f"  rejected    {count:,} {reason}, e.g. {seen.examples[reason]}")
    for name, values in zip(ANGLE_NAMES, seen.poses.T, strict=True):
        if len(values):
            span = f"{values.min():+.0f} ... {values.max():+.0f}, mean {values.mean():+.1f}"
            lines.append(f"  {name:<11} |{histogram(values)}| {span}")
    lines.append(f"  convention  {_verdict_line(seen.verdict)}")
    return lines


def histogram(values: NDArray[np.float64]) -> str:
    """Twenty letters for -100 ... 100 degrees; a bin with anyone in it shows at least the lowest bar."""
    counts = np.histogram(values, MARKS)[0]
    heights = np.ceil(counts / max(1, counts.max()) * (len(BARS) - 1)).astype(int)
    return "".join(BARS[height] for height in heights)


def _verdict_line(verdict: Verdict | None) -> str:
    if verdict is None:
        return "unchecked: no landmarks, or poses that come from them"
    if verdict.kind == "too_few_faces":
        return f"unchecked: too few faces ({verdict.faces}) with landmarks that fit a head"
    if verdict.kind != "agrees":
        return f"{verdict.kind.replace('_', ' ')} (see below)"
    negated = ", ".join(f"{name} {error:.1f}" for name, error in zip(ANGLE_NAMES, verdict.negated, strict=True))
    line = (
        f"agrees with the landmarks of {verdict.faces} faces to {verdict.error:.1f} degrees (negated: {negated}), "
        f"which look {abs(verdict.tilt):.1f} degrees {'higher' if verdict.tilt >= 0 else 'lower'} than labelled"
    )
    return line + (f"; not told by these faces: {', '.join(verdict.undecided)}" if verdict.undecided else "")


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def write_pictures(seen: Examined, data: DataSpec, folder: Path) -> list[Path]:
    """`<name>.faces.png`, crops with the axes of their labels by yaw, and `<name>.angles.png`. Raises OSError."""
    from workflows.report.figures import angle_histograms, sample_sheet

    if not seen.kept:
        return []
    by_yaw = np.argsort(seen.poses[:, YAW], kind="stable")
    shown = by_yaw[evenly(len(by_yaw), SHOWN)]
    windows = np.stack([window(seen.kept[i].crop.pixels, data.crop.size) for i in shown])
    folder.mkdir(parents=True, exist_ok=True)
    faces, angles = folder / f"{seen.name}.faces.png", folder / f"{seen.name}.angles.png"
    faces.write_bytes(encoded(sample_sheet(windows, seen.poses[shown], columns=6)))
    angle_histograms(seen.name, seen.poses).savefig(angles)
    return [faces, angles]
