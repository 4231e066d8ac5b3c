"""Laws of the model card: what it names, whose terms it states, and that nobody's name breaks it."""

import dataclasses
import re

from hpe_core.detection.fit import DetectorFit
from hpe_core.geometry.rotation import CONVENTION
from hpe_core.spec.data import CropSpec, DatasetSpec, DataSpec
from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.training import DistillSpec, TrainSpec
from tests.report.fakes import EXPORTED
from workflows.engine import results as made
from workflows.report.card import metrics_table, model_card

HEADS = {"heads": DatasetSpec("synthetic", count=10)}
CROP = CropSpec(size=48, margin_px=6, box_scale=1.1)


def card_of(
    train: dict[str, DatasetSpec],
    protocol: made.UnderProtocol | None = None,
    distill: DistillSpec | None = None,
    tests: dict[str, DatasetSpec] | None = None,
    fit: DetectorFit | None = None,
    start: str = "",
    scored: int = 123,
) -> str:
    """The card of a student that the search changed to `distill`."""
    configured = TrainSpec(net=NetSpec(backbone="test_resnet"), distill=DistillSpec(), start=start)
    student = dataclasses.replace(configured, distill=distill or DistillSpec())
    data = DataSpec({**train, **(tests or {})}, tuple(train), tuple(tests or train), CROP)
    fetched = TrainSpec(net=NetSpec(backbone="regnetx_002", pretrained="hub"))
    spec = PipelineSpec("card", data, {"big": TrainSpec(), "fetched": fetched}, configured)
    scores = dict.fromkeys(("pitch", "yaw", "roll", "mae", "geodesic"), 6.25) | {"n": float(scored)}
    row = made.Row(next(iter(train)), made.Role.DISTILLED, made.Role.DISTILLED, "student", scores, 4e5, 3.0)
    network = made.NetworkResult.of([{"epoch": 1, "val/mae": 6.0}], 1.0)
    kept = {"train": 1235, "val": 1236, "test": 1234}
    splits = {
        f"{name}.{part}": made.Split(count, count, {}, {}, (), "0123456789abcdef")
        for name in data.datasets
        for part, count in kept.items()
    }
    evaluated = made.EvaluateResult((row,), (), dict.fromkeys(tests or train, "renderer"), {}, {}, protocol)
    shards = made.ShardsResult(splits, 1234, 1234, 0, 0, {}, {}, "")
    results = made.Results(
        {"student": made.StudentResult(network, network, student), "evaluate": evaluated, "shards": shards}
    )
    exported = dataclasses.replace(EXPORTED, traced=dataclasses.replace(EXPORTED.traced, detector_fit=fit))
    return model_card(spec, results, exported, {"stage student": "abc123"})


def test_the_card_names_convention_terms_and_evidence():
    rendered = DatasetSpec("synthetic", count=10)
    free = card_of({"heads": rendered, "p04": DatasetSpec("pointing04", root="p")})
    evidence = (CONVENTION, "48 x 48", "6.25", "| 123 |", "1,234", "2.0e-05", "abc123", "Apache-2.0", "Gourier")
    for text in (*evidence, "| 0.51 | 9.02 |", "some processor", "0.40 M", "+0.030", "fingerprint", "0123456789ab"):
        assert text in free, text
    assert "nothing in the training data forbids" in free and "Weights: research only" not in free
    bound = card_of({"heads": rendered, "wild": DatasetSpec("aflw2000", root="a")})
    assert "Weights: research only, because wild" in bound and "Zhu" in bound
    assert "rendered heads only" in card_of({"heads": rendered}) and "rendered heads only" not in bound
    assert "| dataset | what | faces to train | to validate | to test | terms |" in free
    assert "| 1,235 | 1,236 | 1,234 |" in free, "each below its own word"
    assert "the face box times 1.1, grown to a square" in free


def test_the_card_says_whose_labels_the_student_learnt_from_and_no_others():
    """Those of the trial that won, not those of the configuration; only their pretrained weights bind it."""
    every = card_of(HEADS)
    assert "soft labels of 2 teachers: big (resnet18), fetched (regnetx_002). " in every
    assert "fetched began with" in every
    alone = card_of(HEADS, distill=DistillSpec(teachers=("big",), offset_radius=5, offset_step=2))
    assert "the teacher big (resnet18), over 25 windows (K=4, d=2). " in alone and "began with" not in alone
    tuned = card_of(HEADS, distill=DistillSpec(teachers=("big",), mirrored=True), start="/saved/network")
    assert "the student began with" in tuned and "big (resnet18) and the mirror image. " in tuned


def test_the_card_says_what_photographs_and_detected_boxes_mean_for_it():
    assert "far above the table" in card_of(HEADS)
    tested = card_of(HEADS, tests={"photos": DatasetSpec("aflw2000", root="a")})
    assert "those of photos below" in tested and "far above the table" not in tested
    assert "nothing in the training data forbids" in tested, "who is only tested on binds no weights"
    fitted = card_of(HEADS, fit=DetectorFit(1.18, 1.19, 0.01))
    assert "multiplied by 1.18 (width) and 1.19 (height)" in fitted and "not known here" in card_of(HEADS)


def test_the_card_names_the_protocol_by_its_hash():
    asked = made.UnderProtocol("offsets-1", "feedbeef", ("data.crop.size is 48",))
    assert "No published protocol" in card_of(HEADS)
    named = card_of(HEADS, asked)
    assert "offsets-1, hash `feedbeef`" in named and "data.crop.size is 48" in named
    assert "No published protocol" not in named and "- heads: boxes by renderer, N = 1234" in named


def test_no_name_breaks_a_table_or_opens_a_tag():
    card = card_of({"a|b\n<i>": DatasetSpec("synthetic", count=10)})
    assert "a\\|b &lt;i>" in card and "<i>" not in card and "a|b" not in card
    for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        columns = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert len(columns) > 2 and len(set(columns)) == 1, table


def test_the_card_calls_a_test_set_small_where_it_is():
    """Of 123 faces a score is no more than a hint."""
    few = "Test sets below 500 faces (heads) are small."
    assert few in card_of(HEADS) and "faces (heads) are small" not in card_of(HEADS, scored=500)


def test_the_card_lists_every_network_and_stresses_the_student():
    scores = dict.fromkeys(("pitch", "yaw", "roll", "mae", "geodesic"), 6.25) | {"n": 7.0}
    rows = [made.Row("heads", role, role, "what", scores, 4e5, 3.0) for role in (made.Role.HARD, made.Role.DISTILLED)]
    head, _, *lines = metrics_table(rows).splitlines()
    assert [line.split("|")[3].strip() for line in lines] == ["hard, what", "**distilled**, what"]
    assert head.count("|") == lines[0].count("|")
