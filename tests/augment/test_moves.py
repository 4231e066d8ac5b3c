"""Laws of the augmentation: pixels and labels move together, proved on rendered heads."""

import dataclasses
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpe_core.augment.augment import Augment
from hpe_core.augment.moves import motions, move, random_zooms
from hpe_core.data.batch import PoseBatch
from hpe_core.geometry import rotation
from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.crop import Box, canonical_crop, offset_grid, window
from hpe_core.geometry.landmarks import MIRROR_68
from hpe_core.geometry.rotations import Rotations
from hpe_core.render.scene import RenderedHead, render_head
from hpe_core.spec.data import CropSpec
from hpe_core.spec.training import AugmentSpec
from tests.faces import CROP, head

BINS = AngleBins.covering(99, 3)
NO, NOTHING = np.zeros(4, bool), np.zeros((4, 2), int)
STRETCHED = CropSpec(size=32, margin_px=6, shape="stretch")


def four(values: st.SearchStrategy[Any]) -> st.SearchStrategy[np.ndarray]:
    return st.lists(values, min_size=4, max_size=4).map(np.array)


FLIPS, TURNS, ZOOMS = four(st.booleans()), four(st.floats(-25, 25)), four(st.floats(0.8, 1.25))
JITTERS = four(st.tuples(st.integers(-6, 6), st.integers(-6, 6)))


@cache
def batch_of(crop: CropSpec = CROP, soft: bool = False) -> PoseBatch:
    heads = [head(i) for i in range(4)]
    cuts = [canonical_crop(h.image, h.box, crop) for h in heads]
    angles = torch.tensor([h.pose for h in heads], dtype=torch.float32)
    logits = -((torch.as_tensor(BINS.centers, dtype=torch.float32) - angles[..., None]) ** 2) / 32
    pixels = torch.from_numpy(np.stack([c.pixels for c in cuts]))
    scales = torch.tensor([[c.scale_x, c.scale_y] for c in cuts], dtype=torch.float32)
    return PoseBatch(pixels, angles, scales, logits.log_softmax(-1).half() if soft else None)


@given(FLIPS, JITTERS)
def test_without_a_turn_pixels_and_labels_are_moved_and_mirrored_exactly(flips, jitter):
    batch = batch_of(soft=True)
    out = move(batch, CROP.size, BINS, flips, np.zeros(4), jitter)
    mirrored = rotation.mirror(batch.angles_B3.numpy()).astype(np.float32)
    assert np.array_equal(out.angles_B3.numpy(), np.where(flips[:, None], mirrored, batch.angles_B3.numpy()))
    for i, (dx, dy) in enumerate(jitter):
        picture = batch.images_BHWC[i].flip(1) if flips[i] else batch.images_BHWC[i]
        assert torch.equal(out.images_BHWC[i], window(picture, CROP.size, dx, dy))
        assert torch.equal(out.soft_B3N[i], (BINS.mirror(batch.soft_B3N) if flips[i] else batch.soft_B3N)[i])


@settings(max_examples=25, deadline=None)
@given(FLIPS, TURNS, JITTERS, st.sampled_from(["square", "stretch"]), st.booleans(), st.none() | ZOOMS)
def test_landmarks_stay_on_the_pixels_that_they_mark(flips, turns, jitter, shape, straight, zooms):
    """A blob is painted on one landmark of each face; where it is seen in the moved picture, there the landmark is."""
    crop, rng = CropSpec(size=48, margin_px=10, shape=shape), np.random.default_rng(1)
    marks = rng.uniform(-11, 11, (4, 68, 2))
    pixels = np.zeros((4, 68, 68, 3), np.float32)
    painted = [27, 8, 36, 54]
    for face, one in enumerate(painted):
        x, y = marks[face, one] + 34 - 0.5  # from the crop's centre -> index of a pixel
        rows, columns = np.mgrid[:68, :68]
        pixels[face] = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)[..., None]
    whole = np.concatenate([marks, np.tile(np.arange(68.0)[:, None], (4, 1, 1))], -1)
    scales = torch.tensor([[1.0, 1.0 if shape == "square" else 1.6]]).repeat(4, 1)
    batch = PoseBatch(
        torch.from_numpy(pixels.round().astype(np.uint8)),
        torch.zeros(4, 3),
        scales,
        landmarks_BL3=torch.from_numpy(whole).float(),
    )
    out = move(batch, crop.size, BINS, flips, np.zeros(4) if straight else turns, jitter, 0, zooms)
    for face, one in enumerate(painted):
        light = out.images_BHWC[face, :, :, 0].numpy().astype(float)
        rows, columns = np.mgrid[: crop.size, : crop.size]
        seen = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum() + 0.5 - crop.size / 2
        place = MIRROR_68[one] if flips[face] else one
        moved = out.landmarks_BL3[face, place].numpy()
        assert np.abs(moved[:2] - seen).max() < 0.2 and moved[2] == one, "and what is known of it goes along"


def test_an_unknown_landmark_stays_unknown():
    batch = dataclasses.replace(batch_of(), landmarks_BL3=torch.full((4, 68, 3), torch.nan))
    for turns in (np.zeros(4), np.full(4, 9.0)):
        assert move(batch, CROP.size, BINS, ~NO, turns, NOTHING).landmarks_BL3.isnan().all()


@pytest.mark.parametrize("flip", [False, True])
def test_a_warp_by_nothing_equals_the_gather(flip):
    batch, flips, jitter = batch_of(), np.full(4, flip), np.array([[2, 1], [0, 0], [-3, 4], [5, -5]])
    gathered = move(batch, CROP.size, BINS, flips, np.zeros(4), jitter).images_BHWC
    warped = move(batch, CROP.size, BINS, flips, np.full(4, 1e-9), jitter).images_BHWC
    assert (gathered.int() - warped.int()).abs().max() <= 1


@pytest.mark.parametrize("shape", ["square", "stretch"])
@pytest.mark.parametrize("degrees", [14.0, -9.0])
def test_a_turned_crop_is_the_crop_of_a_turned_picture(shape, degrees):
    """Turn the whole picture clockwise about the box's centre, cut the same box: the same pixels, within resampling."""
    crop = CropSpec(size=48, margin_px=10, shape=shape)
    batch = batch_of(crop)
    out = move(batch, crop.size, BINS, NO, np.full(4, degrees), NOTHING)
    for i in range(4):
        rendered = head(i)
        x, y = rendered.box.center
        # cv2 turns counter-clockwise for a positive angle, about a pixel's centre
        spin = cv2.getRotationMatrix2D((x - 0.5, y - 0.5), -degrees, 1.0)
        turned = cv2.warpAffine(rendered.image, spin, rendered.image.shape[1::-1], flags=cv2.INTER_LINEAR)
        direct = window(canonical_crop(turned, rendered.box, crop).pixels, crop.size)
        difference = np.abs(direct.astype(int) - out.images_BHWC[i].numpy())[8:-8, 8:-8]
        plain = np.abs(direct.astype(int) - window(batch.images_BHWC[i].numpy(), crop.size))[8:-8, 8:-8]
        assert difference.mean() < 4 and difference.mean() < 0.5 * plain.mean()


@pytest.mark.parametrize("shape", ["square", "stretch"])
@pytest.mark.parametrize("zoom", [0.8, 1.2])
def test_a_zoomed_window_is_the_crop_of_a_wider_or_a_tighter_box(shape, zoom):
    crop = CropSpec(size=48, margin_px=10, shape=shape)
    batch = batch_of(crop, soft=True)
    out = move(batch, crop.size, BINS, NO, np.zeros(4), NOTHING, 0, np.full(4, zoom))
    for i in range(4):
        rendered = head(i)
        box = Box.around(rendered.box.center, rendered.box.width * zoom, rendered.box.height * zoom)
        direct = window(canonical_crop(rendered.image, box, crop).pixels, crop.size)
        difference = np.abs(direct.astype(int) - out.images_BHWC[i].numpy())
        plain = np.abs(direct.astype(int) - window(batch.images_BHWC[i].numpy(), crop.size))
        assert difference.mean() < 4 and difference.mean() < 0.5 * plain.mean()
    assert torch.equal(out.angles_B3, batch.angles_B3) and torch.equal(out.soft_B3N, batch.soft_B3N)


@settings(max_examples=20)
@given(FLIPS, TURNS, ZOOMS)
def test_a_zoom_changes_no_label(flips, turns, zooms):
    batch = batch_of(soft=True)
    plain, zoomed = (move(batch, CROP.size, BINS, flips, turns, NOTHING, 0, by) for by in (None, zooms))
    assert torch.equal(zoomed.angles_B3, plain.angles_B3)
    torch.testing.assert_close(zoomed.soft_B3N, plain.soft_B3N)
    before = batch.angles_B3.numpy().astype(np.float64)
    zoomed_only = motions(before, batch.scales_B2.numpy(), BINS.limit, NO, np.zeros(4), NOTHING, 0, zooms)
    assert np.array_equal(zoomed_only["angles"], before) and "turn" not in zoomed_only


@pytest.mark.parametrize("level", [1, 77, 255])
def test_an_even_picture_stays_even_and_what_a_turn_brings_in_from_outside_is_black(level):
    """As the crop is black outside its picture: never the border's colour drawn out."""
    even = dataclasses.replace(batch_of(), images_BHWC=torch.full((4, 32, 32, 3), level, dtype=torch.uint8))
    out = move(even, 32, BINS, NO, np.array([45.0, -45.0, 31.0, 44.0]), NOTHING).images_BHWC
    assert (out[:, 8:-8, 8:-8] == level).all()
    assert all((out[:, y, x] == 0).all() for y in (0, -1) for x in (0, -1))


def test_a_turned_picture_of_a_head_is_the_picture_of_the_turned_head():
    """The convention through renderer, crop and turn: turning pixels by delta and rendering Rz(delta) R agree."""
    crop, pose, delta = CropSpec(size=64, margin_px=16), (12.0, 35.0, -5.0), 20.0
    first = render_head(3, 5, size=192, pose=pose, plain=True)
    target = tuple(float(v) for v in rotation.turn(pose, delta))
    second = render_head(3, 5, size=192, pose=target, plain=True)
    # Both boxes are put around the picture of the head's origin, so the turn is about it.
    side = first.box.width

    def cut(rendered: RenderedHead) -> np.ndarray:
        x, y = rendered.camera.project(np.zeros((1, 3)))[0]
        return canonical_crop(rendered.image, Box.around((float(x), float(y)), side, side), crop).pixels

    batch = PoseBatch(torch.from_numpy(cut(first)[None]), torch.tensor([pose]), torch.ones(1, 2))
    direct = window(cut(second), crop.size).astype(float)

    def difference(degrees: float) -> float:
        out = move(batch, crop.size, BINS, np.array([False]), np.array([degrees]), np.zeros((1, 2), int))
        if degrees == delta:
            assert np.allclose(out.angles_B3.numpy(), [target], atol=1e-4)
        return float(np.abs(direct - out.images_BHWC[0].numpy())[8:-8, 8:-8].mean())

    assert difference(delta) < 0.7 * min(difference(0.0), difference(-delta))


@pytest.mark.parametrize("flip", [False, True])
def test_soft_labels_follow_a_flip_and_a_turn(flip):
    batch = batch_of(soft=True)
    out = move(batch, CROP.size, BINS, np.full(4, flip), np.array([12.0, -12.0, 5.0, 0.0]), NOTHING)
    decoded = BINS.decode(out.soft_B3N.float().softmax(-1))
    before = BINS.decode(batch.soft_B3N.float().softmax(-1)) - batch.angles_B3
    if flip:
        before = before * torch.tensor([1.0, -1.0, -1.0])
    inside = (out.angles_B3.abs() < 80).all(1)
    assert inside.sum() >= 2 and out.soft_B3N.isfinite().all() and out.soft_B3N.dtype == torch.float16
    assert ((decoded - out.angles_B3 - before)[inside].abs() < 0.3).all()


@settings(max_examples=20)
@given(TURNS, JITTERS, FLIPS, st.sampled_from([CROP, STRETCHED]))
def test_the_flip_is_before_the_turn_and_the_window_after_it(turns, jitter, flips, crop):
    """Three moves after each other are one move: of the pixels, the angles and the soft labels."""
    batch = batch_of(crop, soft=True)
    flipped = move(batch, crop.stored_size, BINS, flips, np.zeros(4), NOTHING)
    turned = move(flipped, crop.stored_size, BINS, NO, turns, NOTHING)
    whole = move(batch, crop.size, BINS, flips, turns, jitter)
    for i, (dx, dy) in enumerate(jitter):
        direct = window(turned.images_BHWC[i], crop.size, dx, dy)
        assert (whole.images_BHWC[i].int() - direct.int()).abs().max() <= 1
    assert torch.equal(whole.angles_B3, turned.angles_B3)
    torch.testing.assert_close(whole.soft_B3N, turned.soft_B3N)
    assert torch.equal(whole.scales_B2, batch.scales_B2)


@settings(max_examples=40)
@given(
    poses=four(st.tuples(*[st.floats(-98, 98)] * 3)),
    turns=TURNS,
    flip=st.booleans(),
    gain=st.sampled_from([0.0, 1.0, 1.5, 2.0]),
)
@example(poses=np.array([[0.0, 0.0, 95.0]] * 4), turns=np.full(4, 10.0), flip=False, gain=2.0)
def test_labels_are_mirrored_then_turned_unless_they_would_leave_the_grid_or_run_away(poses, turns, flip, gain):
    batch = dataclasses.replace(batch_of(), angles_B3=torch.tensor(poses, dtype=torch.float32))
    out = move(batch, CROP.size, BINS, np.full(4, flip), turns, NOTHING, gain).angles_B3.numpy()
    for pose, turn, found in zip(batch.angles_B3.numpy().astype(float), turns, out, strict=True):
        start = pose * [1, -1, -1] if flip else pose
        target = rotation.turn(start, turn)
        run = rotation.angle_error(target, start).max()
        edges = [abs(np.abs(target).max() - BINS.limit), abs(run - gain * abs(turn))]
        if min(edges) < 1e-3:
            continue  # rounding may decide
        stays = np.abs(target).max() > BINS.limit or (gain > 0 and run > gain * abs(turn))
        assert np.abs(found - (start if stays else target)).max() < 1e-4


def drawn(spec: AugmentSpec, pose: tuple[float, float, float] = (10.0, 20.0, 0.0)) -> tuple[PoseBatch, PoseBatch]:
    """400 draws for one face, and the batch that they were drawn for."""
    one = batch_of().take(torch.zeros(400, dtype=torch.int64))
    one = dataclasses.replace(one, angles_B3=torch.tensor([pose]).expand(400, 3))
    return Augment(spec, CROP.size, BINS)(one, np.random.default_rng(0)), one


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_so_many_faces_are_flipped(share):
    out, one = drawn(AugmentSpec(flip=share, photometric="none"))
    flipped = out.angles_B3[:, 1] < 0
    assert abs(float(flipped.float().mean()) - share) < (0.1 if 0 < share < 1 else 1e-9)
    assert torch.equal(out.images_BHWC[~flipped], window(one.images_BHWC, CROP.size)[~flipped])


def test_turns_and_jitters_fill_their_ranges_evenly_and_no_more():
    out, _ = drawn(AugmentSpec(flip=0, photometric="none", turn_deg=10), (0.0, 0.0, 0.0))
    turns = out.angles_B3[:, 2].numpy()  # a frontal head's roll is its turn
    assert np.abs(np.quantile(turns, [0, 0.25, 0.5, 0.75, 1]) - [-10, -5, 0, 5, 10]).max() < 1.2
    assert np.abs(turns).max() <= 10
    out, one = drawn(AugmentSpec(flip=0, photometric="none", jitter_px=2))
    views = {window(one.images_BHWC[0], CROP.size, *at).numpy().tobytes() for at in offset_grid(2, 1)}
    assert {view.numpy().tobytes() for view in out.images_BHWC} == views and len(views) == 25


@pytest.mark.parametrize("form", [BINS, Rotations()])
def test_a_face_is_turned_as_far_as_its_form_can_say_and_no_farther(form):
    """A frontal head's roll is 95 and its turn. Who answers rotations learns from heads that lie on their side, too."""
    one = dataclasses.replace(batch_of().take(torch.zeros(400, dtype=torch.int64)), angles_B3=torch.zeros(400, 3))
    one.angles_B3[:, 2] = 95
    spec = AugmentSpec(flip=0, photometric="none", turn_deg=30)
    rolls = Augment(spec, CROP.size, form)(one, np.random.default_rng(0)).angles_B3[:, 2]
    farthest = 99 if form is BINS else 95 + 30
    assert farthest - 2 < rolls.max() <= farthest and 65 <= rolls.min() < 67


@settings(max_examples=40)
@given(st.floats(-175, 175), st.floats(-45, 45), st.booleans())
@example(170.0, 20.0, False)
def test_a_sure_teachers_bins_say_the_moved_label_also_past_a_half_turn(roll, turn, flip):
    """A roll of 170 that is turned by 20 is one of -170: there the bins have to be, as the hard label is."""
    bins = AngleBins.covering(180, 3)
    angles = torch.zeros(4, 3)
    angles[:, 2] = roll
    soft = (-((bins.centers_like(angles) - angles[..., None]) ** 2) / 2).log_softmax(-1).half()
    batch = dataclasses.replace(batch_of(), angles_B3=angles, soft_B3N=soft)
    out = move(batch, CROP.size, bins, np.full(4, flip), np.full(4, turn), NOTHING)
    if out.angles_B3.abs().max() < 174:
        said = bins.decode(out.soft_B3N.float().exp())
        assert (said - out.angles_B3).abs().max() < 1.7, "half a bin, and what rounding makes of it"


def test_zooms_fill_their_range_as_often_above_one_as_below():
    zooms = random_zooms(0.5, 4000, np.random.default_rng(0))
    quartiles = np.quantile(zooms, [0, 0.25, 0.5, 0.75, 1])
    assert np.abs(quartiles - 1.5 ** np.array([-1, -0.5, 0, 0.5, 1])).max() < 0.03
    assert zooms.min() >= 1 / 1.5 and zooms.max() <= 1.5 and random_zooms(0, 9, np.random.default_rng(0)) is None


def test_an_augmentation_zooms_each_face_by_its_own_factor():
    marks = torch.tensor([8.0, -6.0, 1.0]).expand(400, 68, 3)
    one = dataclasses.replace(batch_of().take(torch.zeros(400, dtype=torch.int64)), landmarks_BL3=marks)
    spec = AugmentSpec(flip=0, photometric="none", zoom=0.25)
    out = Augment(spec, CROP.size, BINS)(one, np.random.default_rng(0)).landmarks_BL3[:, 0, :2].numpy()
    zooms = np.array([8, -6]) / out
    assert np.allclose(zooms[:, 0], zooms[:, 1], atol=1e-4), "both sides alike"
    assert zooms.min() >= 0.8 - 1e-4 and zooms.max() <= 1.25 + 1e-4 and np.quantile(zooms, 0.9) > 1.1
    assert np.quantile(zooms, 0.1) < 0.9 and len(np.unique(zooms[:, 0])) > 390


def test_a_jitter_beyond_the_margin_is_refused():
    with pytest.raises(AssertionError, match="margin of 6 pixels"):
        move(batch_of(), CROP.size, BINS, NO, np.zeros(4), np.full((4, 2), 7))
    with pytest.raises(AssertionError, match="margin of 6 pixels"):
        drawn(AugmentSpec(jitter_px=7))


def test_the_draws_of_an_augmentation_heed_turn_gain():
    for gain, turned in ((2.0, False), (0.0, True)):
        out, one = drawn(AugmentSpec(flip=0, photometric="none", turn_deg=10, turn_gain=gain), (0.0, 86.0, 0.0))
        assert bool((out.angles_B3 != one.angles_B3).any()) == turned


@pytest.mark.parametrize("name", ["light", "ehpnet", "offsets"])
def test_every_face_gets_recolouring_of_its_own_as_often_as_strength_says(name):
    out, one = drawn(AugmentSpec(flip=0, photometric=name))
    assert len({view.numpy().tobytes() for view in out.images_BHWC}) > 100
    plain = window(one.images_BHWC, CROP.size)
    again, _ = drawn(AugmentSpec(flip=0, photometric=name))
    assert torch.equal(out.images_BHWC, again.images_BHWC) and out.images_BHWC.dtype == torch.uint8
    assert torch.equal(out.angles_B3, one.angles_B3), "colours say nothing of the pose"
    kept = {}
    for strength in (0.0, 0.3, 1.0):
        out, _ = drawn(AugmentSpec(flip=0, photometric=name, strength=strength))
        kept[strength] = float((out.images_BHWC == plain).flatten(1).all(1).float().mean())
    assert kept[0.0] == 1 and kept[0.3] > kept[1.0] + 0.2


@pytest.mark.parametrize("backend", ["device", "albumentations"])
def test_either_backend_recolours_by_its_draws_alone_and_as_often_as_strength_says(backend):
    """Nothing of EHPNet's three parts, of probabilities 0.5, 0.5 and 0.3, happens to 0.75 x 0.75 x 0.85 at a half."""
    one = batch_of().take(torch.zeros(150, dtype=torch.int64))
    plain = window(one.images_BHWC, CROP.size)
    augment = Augment(AugmentSpec(flip=0, photometric="ehpnet", strength=0.5, backend=backend), CROP.size, BINS)
    first, again, other = (augment(one, np.random.default_rng(seed)).images_BHWC for seed in (0, 0, 1))
    kept = [(images == plain).flatten(1).all(1) for images in (first, other)]
    assert torch.equal(first, again) and not torch.equal(*kept), "other draws recolour other faces"
    assert all(abs(float(each.float().mean()) - 0.75 * 0.75 * 0.85) < 0.12 for each in kept)


@pytest.mark.parametrize("name", ["light", "ehpnet", "offsets"])
@pytest.mark.parametrize("turn_deg", [0.0, 15.0])
def test_faces_that_are_turned_are_recoloured_too(name, turn_deg):
    """Beside the same draws without colours: a warp leaves another layout in memory than a slice."""
    plain, _ = drawn(AugmentSpec(flip=0, turn_deg=turn_deg, jitter_px=2, photometric="none"))
    out, _ = drawn(AugmentSpec(flip=0, turn_deg=turn_deg, jitter_px=2, photometric=name))
    changed = (out.images_BHWC != plain.images_BHWC).flatten(1).any(1).float().mean()
    assert torch.equal(out.angles_B3, plain.angles_B3) and changed > 0.6


def test_a_face_near_the_lock_stays_and_others_turn():
    """At 85 degrees of yaw a turn by 10 changes pitch and roll by some 60: that face keeps its pixels and labels."""
    batch = batch_of(soft=True)
    angles = torch.tensor([[0.0, 0.0, 0.0], [10.0, 45.0, -5.0], [3.0, 85.0, 4.0], [-8.0, -86.0, 0.0]])
    batch = dataclasses.replace(batch, angles_B3=angles)
    turns = np.array([10.0, -10.0, 10.0, -10.0])
    change = rotation.angle_error(rotation.turn(angles.numpy(), turns), angles.numpy()).max(1)
    assert (change[:2] < 20).all() and (change[2:] > 20).all()
    free = move(batch, CROP.size, BINS, NO, turns, NOTHING)
    out = move(batch, CROP.size, BINS, NO, turns, NOTHING, turn_gain=2.0)
    for i in (0, 1):
        assert torch.equal(out.images_BHWC[i], free.images_BHWC[i])
        assert torch.equal(out.angles_B3[i], free.angles_B3[i]) and not torch.equal(out.angles_B3[i], angles[i])
    still = move(batch, CROP.size, BINS, NO, np.zeros(4), NOTHING)
    for i in (2, 3):
        assert torch.equal(out.angles_B3[i], angles[i])
        assert (out.images_BHWC[i].int() - still.images_BHWC[i].int()).abs().max() <= 1
        assert torch.allclose(out.soft_B3N[i].float().exp(), batch.soft_B3N[i].float().exp(), atol=1e-3)
