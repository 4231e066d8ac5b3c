"""Laws of the rendered heads: the picture, the landmarks and R agree, and nothing depends on who draws it
when."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from hpe_core.geometry.rotation import matrix_to_euler
from hpe_core.render import anatomy as anatomy_module
from hpe_core.render.anatomy import anatomy, average_adult
from hpe_core.render.light import Light, Lobe
from hpe_core.render.raster import FAR, Frame, color_map
from hpe_core.render.scene import (
    WHOLE_CIRCLE,
    HeadStyle,
    PoseRange,
    RenderedHead,
    Scene,
    contact_sheet,
    draw_pose,
    draw_style,
    render_head,
    render_scene,
)
from hpe_core.render.zero import archive_head, fit, our_head

SIZE = 128
GREY = np.full((2 * SIZE, 2 * SIZE, 3), 0.25, np.float32)
# Lips green, scalp blue, all else grey: what the eye would follow. The scene's light is white.
MARKED = HeadStyle(
    skin=(0.6, 0.6, 0.6),
    lip=(0.03, 0.95, 0.03),
    hair_color=(0.03, 0.03, 0.95),
    cut="crop",
    hair_length=3.0,
    redness=0.0,
    shine=0.0,
    brow_density=0.0,
    cloth_color=(0.5, 0.5, 0.5),
    cloth_second=(0.5, 0.5, 0.5),
)
BALD = HeadStyle(cut="bald")
WHITE = Scene(light=Light(lamp=(0.0, -0.3, -0.954)))

poses = st.tuples(st.floats(-70, 70), st.floats(-99, 99), st.floats(-75, 75))


def picture(style: HeadStyle, scene: Scene) -> NDArray[np.float32]:
    """(SIZE, SIZE, 3) linear light."""
    return cv2.resize(render_scene(style, scene, SIZE, GREY).linear, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def masks(image: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(lips, scalp) found by colour alone."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    return green > 1.6 * np.maximum(red, blue), blue > 1.6 * np.maximum(red, green)


def marked(pose: tuple[float, float, float]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return masks(picture(MARKED, replace(WHITE, pose=pose)))


def centroid(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    rows, cols = np.nonzero(mask)
    return np.array([cols.mean() + 0.5, rows.mean() + 0.5])


def digest(head: RenderedHead) -> str:
    parts = (head.image, head.landmarks, head.visible, head.rotation)
    return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()


# ---- the convention, from pixels alone


def test_positive_yaw_turns_the_face_to_image_left() -> None:
    shift = {}
    for yaw in (-40.0, 0.0, 40.0):
        lips, scalp = marked((0.0, yaw, 0.0))
        shift[yaw] = (centroid(lips) - centroid(scalp))[0]
    assert abs(shift[0.0]) < 1.0
    assert shift[40.0] < -10.0
    assert shift[-40.0] > 10.0


def test_positive_pitch_lifts_the_nose() -> None:
    # Nose up shows less of the scalp and lifts the lips over the ears' height; nose down shows the crown.
    area = {pitch: marked((pitch, 0.0, 0.0))[1].sum() for pitch in (-40.0, 0.0, 40.0)}
    assert area[40.0] < 0.6 * area[0.0]
    assert area[-40.0] > 1.5 * area[0.0]


@pytest.mark.parametrize("roll", [-60.0, -25.0, 25.0, 60.0])
def test_roll_is_the_clockwise_turn_on_screen(roll: float) -> None:
    lips, scalp = marked((0.0, 0.0, roll))
    down = centroid(lips) - centroid(scalp)
    # Clockwise on screen swings what hangs below to image left.
    assert np.degrees(np.arctan2(-down[0], down[1])) == pytest.approx(roll, abs=3.0)


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.floats(-30, 35), st.floats(-35, 35), st.floats(-75, 75)), st.floats(0, 0.6))
def test_landmarks_lie_on_the_painted_lips(pose: tuple[float, float, float], jaw: float) -> None:
    """Also those of a mouth that opens."""
    scene = replace(WHITE, pose=pose, face=(("jawOpen", jaw),))
    drawing = render_scene(MARKED, scene, SIZE, GREY)
    lips, _ = masks(picture(MARKED, scene))
    mouth = drawing.camera.project(drawing.points_head)[48:60]
    assert np.linalg.norm(centroid(lips) - mouth.mean(0)) < 2.6


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.floats(-30, 30), st.floats(-40, 40), st.floats(-75, 75)))
def test_visible_landmarks_lie_on_the_surface_that_was_drawn(pose: tuple[float, float, float]) -> None:
    drawing = render_scene(BALD, replace(WHITE, pose=pose), SIZE, GREY)
    pixel = np.floor(drawing.camera.project(drawing.points_head) * 2).astype(int)
    depth = drawing.depth[pixel[:, 1], pixel[:, 0]]
    expected = drawing.camera.to_camera(drawing.points_head)[:, 2]
    seen = drawing.visible & (depth < FAR / 2)
    assert seen.sum() >= 24  # 28 at the worst corner of these ranges
    assert np.median(np.abs(depth - expected)[seen]) < 1.0  # millimetres; a pixel is about one


# ---- geometry of labels


@settings(max_examples=40, deadline=None)
@given(poses)
def test_rotation_is_scipys(pose: tuple[float, float, float]) -> None:
    head = render_head(3, 5, size=32, pose=pose, plain=True)
    pitch, yaw, roll = pose
    expected = Rotation.from_euler("XYZ", [-pitch, yaw, roll], degrees=True).as_matrix()
    np.testing.assert_allclose(head.rotation, expected, atol=1e-9)
    assert head.pose == pose
    decoded = matrix_to_euler(head.rotation)
    # Beyond 90 degrees of yaw the same R has a second triple inside, and that is what a decode returns.
    inside = pose if abs(yaw) <= 90 else (pitch + 180, 180 - yaw, roll + 180)
    if abs(abs(yaw) - 90) > 0.1:
        np.testing.assert_allclose((decoded - inside + 180) % 360, 180, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(poses, st.integers(0, 300))
def test_pnp_recovers_the_rotation(pose: tuple[float, float, float], index: int) -> None:
    head = render_head(1, index, size=48, pose=pose, plain=True)
    ok, rvec, tvec = cv2.solvePnP(
        head.points_head.astype(np.float64),
        head.landmarks.astype(np.float64),
        head.camera.matrix,
        None,
        flags=cv2.SOLVEPNP_SQPNP,
    )
    assert ok and tvec[2, 0] > 0
    found = cv2.Rodrigues(rvec)[0]
    error = np.degrees(np.linalg.norm(Rotation.from_matrix(found @ head.rotation.T).as_rotvec()))
    assert error < 0.5


def test_landmarks_are_in_ibug_order() -> None:
    points = render_head(2, 0, pose=(0.0, 0.0, 0.0), plain=True).landmarks
    x, y = points[:, 0], points[:, 1]
    assert (np.diff(x[:17]) > 0).all()  # the jaw runs from image left to image right
    assert y[8] == y.max()  # by way of the chin
    assert (np.diff(x[17:27]) > 0).all() and y[17:27].max() < y[36:48].min()
    assert (np.diff(y[27:31]) > 0).all() and (np.diff(x[31:36]) > 0).all()
    assert x[36] < x[39] < x[42] < x[45]  # corners of the eyes
    assert y[37] < y[41] and y[44] < y[46]  # upper lids over lower lids
    assert x[48] == x[48:].min() and x[54] == x[48:].max() and y[51] < y[62] < y[66] < y[57]


@settings(max_examples=30, deadline=None)
@given(poses, st.integers(0, 100))
def test_box_holds_the_landmarks_and_may_move_a_tenth(pose: tuple[float, float, float], index: int) -> None:
    head = render_head(4, index, size=64, pose=pose, plain=True)
    middle, reach = (head.landmarks.max(0) + head.landmarks.min(0)) / 2, 0.7 * np.ptp(head.landmarks, axis=0)
    corners = [head.box.x1, head.box.y1, head.box.x2, head.box.y2]
    np.testing.assert_allclose(corners, [*(middle - reach), *(middle + reach)], atol=1e-3)
    side = max(head.box.width, head.box.height)
    assert 0.45 * 64 < side < 0.70 * 64
    for corner in (head.box.x1, head.box.y1):
        assert corner - 0.1 * side > -0.01
    for corner in (head.box.x2, head.box.y2):
        assert corner + 0.1 * side < 64.01


def test_profile_hides_the_far_half() -> None:
    scene = replace(WHITE, pose=(0.0, 80.0, 0.0))
    drawing = render_scene(BALD, scene, SIZE, GREY)
    far_eye, near_eye = drawing.visible[36:42], drawing.visible[42:48]
    assert not far_eye.any() and near_eye[1:].all()  # its inner corner lies behind the root of the nose
    assert not drawing.visible[0:7].any() and drawing.visible[10:15].all()
    mirrored = render_scene(BALD, scene.mirrored(), SIZE, GREY)
    assert np.delete(mirrored.visible[36:42], 3).all() and not mirrored.visible[42:48].any()
    frontal = render_scene(BALD, WHITE, SIZE, GREY).visible
    assert frontal[17:68].sum() >= 48


def test_sunglasses_hide_the_eyes_and_clear_ones_do_not() -> None:
    bare = BALD
    dark = render_scene(replace(bare, glasses="sun"), WHITE, SIZE, GREY).visible
    clear = render_scene(replace(bare, glasses="clear"), WHITE, SIZE, GREY).visible
    assert not dark[36:48].any() and clear[36:48].all()


# ---- mirror law


@settings(max_examples=15, deadline=None)
@given(
    poses,
    st.floats(-1, 1),
    st.sampled_from(["crop", "long", "afro", "bald", "back"]),
    st.sampled_from(["none", "cap", "scarf"]),
)
def test_mirrored_scene_is_the_mirrored_picture(
    pose: tuple[float, float, float], side: float, cut: str, hat: str
) -> None:
    style = HeadStyle(cut=cut, hat=hat, blotches=1.0, beard=6.0, noise_seed=5, glasses="clear")  # type: ignore[arg-type]
    scene = Scene(
        pose=pose,
        body_pose=(pose[0] * 0.4, pose[1] * 0.5, pose[2] * 0.5),
        light=Light(lamp=(side, -0.5, -0.6), lobes=(Lobe((0.8, -0.6, 0.0), (1.0, 0.9, 0.8), 6.0),)),
        offset=(8.0, 3.0),
        shift=(0.03, 0.02),
        gaze=(8.0, 3.0),
        face=(("jawOpen", 0.3), ("mouthSmileLeft", 0.6), ("eyeBlinkRight", 0.4)),
    )
    one, two = picture(style, scene), picture(style, scene.mirrored())[:, ::-1]
    assert np.abs(one - two).mean() < 0.020
    p, y, r = pose
    if abs(r) > 20:  # and a flip that forgets the roll is found out
        wrong = replace(scene.mirrored(), pose=(p, -y, r))
        assert np.abs(one - picture(style, wrong)[:, ::-1]).mean() > 0.028


def test_the_data_file_is_the_one_that_the_code_names() -> None:
    file = Path(anatomy_module.__file__).with_name("anatomy.npz")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == anatomy_module.SHA256
    assert "CC0" in file.with_name("anatomy.LICENSE.md").read_text()


def test_zero_is_that_of_aflw2000(real_data: Path) -> None:
    """Un-turned, the faces of the archive look where our head looks, to what landmarks can tell."""
    rotation, left = fit(our_head(60), archive_head(real_data / "aflw2000"))
    assert np.abs(matrix_to_euler(rotation)).max() < 2.5 and left < 0.11


def test_the_shared_head_is_its_own_mirror_image() -> None:
    shared = anatomy()
    points = shared.shaped(average_adult())
    np.testing.assert_allclose(points[shared.mirror] * [-1, 1, 1], points, atol=0.6)  # its targets are nearly so
    marks = shared.landmarks_of(shared.points)
    np.testing.assert_allclose((marks[:8] * [-1, 1, 1])[::-1], marks[9:17], atol=0.01)
    np.testing.assert_allclose(marks[36] * [-1, 1, 1], marks[45], atol=0.01)


# ---- determinism


def test_same_pixels_in_another_process_order_and_thread_count() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); import cv2; cv2.setNumThreads(1)\n"
        "from tests.render.test_scene import digest, render_head\n"
        "print(*[digest(render_head(7, i, size=96)) for i in (13, 2, 8)])"
    )
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=True)
    assert out.stdout.split() == [digest(render_head(7, i, size=96)) for i in (13, 2, 8)]


def test_pose_and_geometry_do_not_depend_on_the_size() -> None:
    small, large = render_head(0, 17, size=64), render_head(0, 17, size=192)
    assert small.pose == large.pose
    np.testing.assert_allclose(small.landmarks * 3, large.landmarks, rtol=1e-4, atol=1e-3)
    assert large.image.shape == (192, 192, 3) and large.image.dtype == np.uint8


def test_given_pose_replaces_the_drawn_pose_only() -> None:
    free = render_head(0, 21, size=64)
    same = render_head(0, 21, size=64, pose=free.pose)
    assert digest(free) == digest(same)


def test_group_is_the_person() -> None:
    a, b, c = (render_head(5, i, size=32) for i in (0, 7, 8))
    assert a.group == b.group == "person-5-00000" and c.group == "person-5-00001"
    assert b.sample_id == "head-5-000007"
    assert draw_style(5, 0) != draw_style(5, 1) and draw_style(5, 0) != draw_style(6, 0)


def test_occluders_only_take_visibility_away() -> None:
    hidden = 0
    for index in range(60):
        dressed, plain = render_head(9, index, size=48), render_head(9, index, size=48, plain=True)
        assert not (dressed.visible & ~plain.visible).any()
        np.testing.assert_array_equal(dressed.landmarks, plain.landmarks)
        hidden += bool((dressed.visible != plain.visible).any())
    assert 2 <= hidden <= 20  # about 15 % have something in front, not always of a landmark


def test_poses_are_wide_and_inside_the_bins() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([draw_pose(rng) for _ in range(4000)])
    pitch, yaw, roll = drawn.T
    assert np.abs(drawn).max() <= 99
    assert 0.08 < (np.abs(yaw) > 70).mean() < 0.2 and 0.3 < (np.abs(yaw) < 20).mean() < 0.55
    near = np.abs(yaw) < 20
    assert 17 < pitch[near].std() < 20 and 14 < roll[near].std() < 16 and abs(yaw.mean()) < 3


def test_a_profile_is_turned_as_a_picture_is() -> None:
    """Pitch and roll of a turned profile move far, and together."""
    rng = np.random.default_rng(3)
    pitch, yaw, roll = np.array([draw_pose(rng) for _ in range(4000)]).T
    side = np.abs(yaw) > 60
    assert np.corrcoef(pitch[side] * np.sign(yaw[side]), roll[side])[0, 1] > 0.7
    assert roll[side].std() > 25 and abs(np.corrcoef(pitch[~side], roll[~side])[0, 1]) < 0.1


@settings(max_examples=30, deadline=None)
@given(st.floats(-89, 89), st.floats(-180, 180), st.floats(-180, 180))
def test_the_whole_circle_is_drawn(pitch: float, yaw: float, roll: float) -> None:
    """From behind there is hair where the face would be, and no landmark of the face is seen."""
    drawing = render_scene(MARKED, replace(WHITE, pose=(pitch, yaw, roll)), SIZE, GREY)
    camera = drawing.camera
    middle = np.floor(camera.project(np.array([[0.0, -10.0, 5.0]]))[0] * 2).astype(int)
    if (middle >= 0).all() and (middle < 2 * SIZE).all():
        near = camera.to_camera(np.array([[0.0, -10.0, 5.0]]))[0, 2]
        assert drawing.depth[middle[1], middle[0]] < near - 40  # something of the skull is in front of its middle
    toward = -(camera.rotation @ [0.0, 0.0, -1.0])[2]  # 1: the face looks into the camera
    if toward < -0.6:
        assert not drawing.visible[27:68].any()
    if toward > 0.9:
        assert drawing.visible[27:68].sum() >= 24


def test_draws_of_the_whole_circle_reach_behind() -> None:
    rng = np.random.default_rng(1)
    drawn = np.array([draw_pose(rng, WHOLE_CIRCLE) for _ in range(2000)])
    assert (np.abs(drawn[:, 1]) > 120).mean() > 0.2 and np.abs(drawn[:, 1]).max() > 170
    narrow = np.array([draw_pose(rng, PoseRange(yaw=20.0, pitch=10.0, roll=5.0)) for _ in range(500)])
    assert (np.abs(narrow) <= [10.0, 20.0, 5.0]).all()
    wide = [render_head(0, k, size=32, plain=True, poses=WHOLE_CIRCLE).pose[1] for k in range(12)]
    assert max(np.abs(wide)) > 120


def test_bad_arguments_are_refused() -> None:
    for bad in ({"seed": -1}, {"index": -1}, {"size": 16}, {"heads_per_person": 0}):
        with pytest.raises(ValueError, match="seed="):
            render_head(**{"seed": 0, "index": 0, **bad})  # type: ignore[arg-type]


def test_contact_sheet_is_a_grid_of_heads() -> None:
    sheet = contact_sheet(3, rows=2, cols=3, size=48)
    assert sheet.shape == (96, 144, 3)
    np.testing.assert_array_equal(sheet[48:, 48:96], render_head(3, 4 * 9, size=48).image)


# ---- rasteriser


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_rasteriser_against_a_pixel_by_pixel_search(seed: int, both: bool) -> None:
    rng = np.random.default_rng(seed)
    side, count = 23, 12
    xy = rng.uniform(-8, 31, (count * 3, 2)).astype(np.float32)
    z = rng.uniform(500, 900, count * 3).astype(np.float32)
    tri = np.arange(count * 3).reshape(count, 3)
    frame = Frame.empty(side)
    values = np.concatenate([xy, z[:, None]], 1)
    frame.draw(xy, z, tri, values, "both" if both else "front")
    alone = color_map(xy, z, tri, values, np.zeros_like(frame.color), "both" if both else "front")
    np.testing.assert_array_equal(alone, frame.color)
    expected, margin = np.full((side, side), np.inf), np.full((side, side), np.inf)
    px, py = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    for a, b, c in tri:
        basis = np.array([xy[b] - xy[a], xy[c] - xy[a]], np.float64).T
        area = np.linalg.det(basis)
        if abs(area) < 1e-3 or (area > 0 and not both):
            continue
        u, v = np.linalg.inv(basis) @ np.stack([px.ravel() - xy[a, 0], py.ravel() - xy[a, 1]])
        inside = np.minimum(np.minimum(u, v), 1 - u - v).reshape(side, side)
        # 1 / z is linear on the screen
        depth = 1 / (1 / z[a] + u * (1 / z[b] - 1 / z[a]) + v * (1 / z[c] - 1 / z[a])).reshape(side, side)
        expected = np.where(inside >= 0, np.minimum(expected, depth), expected)
        margin = np.minimum(margin, np.abs(inside) * abs(area) ** 0.5)
    clear = margin > 0.05  # a pixel centre on an edge may go either way
    drawn = frame.depth < FAR / 2
    np.testing.assert_array_equal(drawn[clear], np.isfinite(expected)[clear])
    hit = clear & drawn
    np.testing.assert_allclose(frame.depth[hit], expected[hit], rtol=2e-3)
    np.testing.assert_allclose(frame.color[..., 2][hit], expected[hit], rtol=2e-3)  # values are mixed in perspective


def test_values_at_a_pixel_are_those_of_its_centre() -> None:
    xy = np.array([[2.0, 3.0], [4.0, 60.0], [61.0, 5.0]], np.float32)
    frame = Frame.empty(64)
    frame.draw(xy, np.full(3, 700.0, np.float32), np.array([[0, 1, 2]]), np.concatenate([xy, np.ones((3, 1))], 1))
    rows, cols = np.nonzero(frame.depth < FAR / 2)
    assert len(rows) > 1000
    np.testing.assert_allclose(frame.color[rows, cols, 0], cols + 0.5, atol=0.01)
    np.testing.assert_allclose(frame.color[rows, cols, 1], rows + 0.5, atol=0.01)
