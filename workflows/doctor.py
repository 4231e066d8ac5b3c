"""Is everything as a run needs it? Looks at datasets and machine, changes nothing, and says what to mend.

    python workflows/doctor.py -c conf/demo.yaml                        a configuration's datasets, and this machine
    python workflows/doctor.py reader=aflw2000 root=/archives/AFLW2000  one dataset alone, before it is configured
    python workflows/doctor.py -c conf/demo.yaml out=look faces=2000    pictures into a folder; more faces decoded
    python workflows/doctor.py model=student.int8.onnx                  an exported network alone, or a folder of them

Datasets: how much of the archive is there, what is rejected and why, how faces are split and turned, and whether the
labels are in our convention: where landmarks exist, each label is compared with the pose that they give, in every
convention that labels come in; else the numbers alone are looked at. With out=FOLDER also `<name>.faces.png` (crops
with the axes of their labels) and `<name>.angles.png`. At most faces=300 of each dataset are decoded (0: all). Machine:
packages, networks, GPU, room in the store, memory, Ray and its dashboard, MLflow, and
what was published last.

Errors must be mended: a dataset that is missing, empty or cannot be split; one that is tested on a picture that another
is trained on; more rejected faces than data.max_bad_share;
a wrong convention, or labels that fit their landmarks in none; a package that is missing or of a wrong version; a
backbone that timm does not know; a GPU that is asked for and not there; a store that is not writable or too small; a
Ray cluster that is to be joined and does not answer or is of other versions; an MLflow database of a newer schema; an
exported network that OpenVINO, where it is installed, reads as another one.
Warnings may be meant: a part of an archive, some rejected or repeated faces, angles that look like radians, like
two units or nothing known, more than half of the faces beyond data.limit_deg, the same angles for all, a table that
names no persons, or pictures that other programs turn by their EXIF, an idle GPU, little memory, a dashboard that is
open to the network, an MLflow server that does not answer.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hpe_core.datasets.base import DatasetError
from hpe_core.datasets.leaks import check_leaks
from hpe_core.datasets.plan import used_datasets
from hpe_core.datasets.registry import open_source, reader_of
from hpe_core.errors import SpecError, check, nearest, say
from hpe_core.spec.data import CropSpec, DatasetSpec, DataSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build
from workflows.checks.data import Examined, examine, in_lines, write_pictures
from workflows.checks.findings import Finding, Look
from workflows.checks.machine import examine_machine, look_at_packages
from workflows.checks.models import look_at_exported, networks_in, published_in
from workflows.engine.commandline import parted, typed_overrides
from workflows.engine.config import DEFAULT_CONFIG, EXIT_BAD_INPUT, absolute, arguments, guarded, load, tell

FACES = 300  # decoded of each dataset where nothing else is said
OWN = ("faces", "out", "model")
OWN_KEYS = (
    "own keys: faces=300, out=FOLDER, model=FILE or FOLDER; of one dataset alone: reader=NAME root=FOLDER, and what "
    "else datasets have"
)
CODES = {0: "nothing must be mended", EXIT_BAD_INPUT: "something must be, or bad configuration"}
ALONE = tuple(field.name for field in dataclasses.fields(DatasetSpec))
PIPELINE = tuple(field.name for field in dataclasses.fields(PipelineSpec))
LOOKED_AT_ALONE = CropSpec(size=128, margin_px=0)  # of a dataset without a configuration


def main(argv: Sequence[str]) -> int:
    args = arguments(argv, __doc__ or "", ("run",), OWN_KEYS, CODES)
    own, words = parted(args.overrides, OWN)
    faces, out = check_own(own)
    looks = [look_at_packages()]
    if looks[0].findings:
        return conclude(looks, [], as_json=args.json)  # whatever comes next imports what may be missing
    networks = networks_in(Path(absolute(own["model"], Path.cwd()))) if "model" in own else []
    if networks and not words and args.config == [DEFAULT_CONFIG]:
        return conclude([*looks, look_at_exported(networks)], [], as_json=args.json)
    alone = check_keys(words)
    if alone:
        if args.config != [DEFAULT_CONFIG]:
            raise SpecError(f"{words[0]} describes one dataset alone; leave out -c {args.config[0]}")
        data, prefix = dataset_alone(words), ""
    else:
        spec = load(args.config, words)
        data, prefix = spec.data, "data.datasets.{}."
    seen = look_at_data(data, faces, prefix, out, planned=not alone)
    if not alone:
        looks += examine_machine(spec, seen)
        networks = networks or published_in(spec.folder)
    looks += [look_at_exported(networks)] if networks else []
    return conclude(looks, seen, as_json=args.json)


def look_at_data(data: DataSpec, faces: int, prefix: str, out: Path | None, *, planned: bool) -> list[Examined]:
    """Every dataset that has a role, and its pictures where a folder is given for them."""
    seen = []
    for name in used_datasets(data):
        say(f"looking at {name}")
        seen.append(examine(name, data.datasets[name], data, faces, prefix.format(name), planned=planned))
        try:
            written = write_pictures(seen[-1], data, out) if out is not None else []
        except OSError as error:
            raise SpecError(f"out={out}: the pictures cannot be written: {error}") from None
        for path in written:
            say(f"wrote {path}")
    plans = {one.name: one.plan for one in seen if one.plan is not None}
    try:
        check_leaks(plans, {name: open_source(data.datasets[name]) for name in plans})
    except DatasetError as error:
        found = Finding("error", seen[-1].name, str(error))
        seen[-1] = dataclasses.replace(seen[-1], findings=(*seen[-1].findings, found))
    return seen


def check_own(own: dict[str, str]) -> tuple[int, Path | None]:
    """(faces, out). Raises SpecError for a number that is none, and for a folder that cannot be made."""
    faces = own.get("faces", str(FACES))
    check(faces.isdecimal(), f"faces={faces} is no number of faces (0: all of them)")
    if "out" not in own:
        return int(faces), None
    out = Path(absolute(own["out"], Path.cwd()))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"out={own['out']}: the folder cannot be made: {error.strerror}") from None
    return int(faces), out


def check_keys(words: Sequence[str]) -> bool:
    """Whether the words describe one dataset alone. Raises SpecError for a key that nobody has."""
    for word in words:
        check("=" in word, f"'{word}' is no override; write key=value, for example faces=1000")
    keys = [word.partition("=")[0].split(".")[0] for word in words]
    alone = any(key in ALONE for key in keys)
    known = [*OWN, *ALONE, *(() if alone else PIPELINE)]
    for key in keys:
        check(key in known, f"unknown key {key}{nearest(key, known)}")
    return alone


def dataset_alone(words: Sequence[str]) -> DataSpec:
    """`reader=... root=...` -> data with that one dataset, named like its reader. Raises SpecError."""
    spec = build(DatasetSpec, typed_overrides(DatasetSpec, words))
    here = Path.cwd()
    spec = dataclasses.replace(spec, root=absolute(spec.root, here), boxes=absolute(spec.boxes, here))
    reader_of(spec)
    return DataSpec({spec.reader: spec}, train=(spec.reader,), test=(), crop=LOOKED_AT_ALONE)


def conclude(looks: Sequence[Look], seen: Sequence[Examined], *, as_json: bool) -> int:
    """Print everything; the exit code says whether anything must be mended."""
    findings = [finding for one in seen for finding in one.findings]
    findings += [finding for look in looks for finding in look.findings]
    findings.sort(key=lambda finding: finding.level)  # errors first
    failed = any(finding.level == "error" for finding in findings)
    if as_json:
        tree = {
            "ok": not failed,
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "datasets": {one.name: one.report for one in seen},
            "machine": {look.part: look.said for look in looks},
        }
        tell(json.dumps(tree))
    else:
        lines = [line for one in seen for line in (*in_lines(one), "")]
        lines += [f"{look.part:<12}  {look.said}" for look in looks]
        lines += ["", *map(str, findings)] if findings else ["", "all is well"]
        tell("\n".join(lines))
    return EXIT_BAD_INPUT if failed else 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
