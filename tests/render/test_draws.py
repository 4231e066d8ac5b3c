"""What is drawn: the same heads whoever draws them when, wide poses, and arguments that make sense."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.render.draw import render_scene
from hpe_core.render.person.style import draw_style
from hpe_core.render.scene import WHOLE_CIRCLE, PoseRange, draw_pose, render_head
from tests.render.scenes import GREY, MARKED, SIZE, WHITE, digest


def test_same_pixels_in_another_process_order_and_thread_count() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); import cv2; cv2.setNumThreads(1)\n"
        "from hpe_core.render.scene import render_head; from tests.render.scenes import digest\n"
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
    for index in range(24):
        dressed, plain = render_head(9, index, size=48), render_head(9, index, size=48, plain=True)
        assert not (dressed.visible & ~plain.visible).any()
        np.testing.assert_array_equal(dressed.landmarks, plain.landmarks)
        hidden += bool((dressed.visible != plain.visible).any())
    assert 2 <= hidden <= 9  # about 20 % have something in front, not always of a landmark


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
    assert (np.abs(drawn[:, 0]) > 60).mean() > 0.1, "from above and below"
    assert (np.abs(drawn[:, 2]) > 90).mean() > 0.03, "upside down"
    narrow = np.array([draw_pose(rng, PoseRange(yaw=20.0, pitch=10.0, roll=5.0)) for _ in range(500)])
    assert (np.abs(narrow) <= [10.0, 20.0, 5.0]).all()
    wide = [render_head(0, k, size=32, plain=True, poses=WHOLE_CIRCLE).pose[1] for k in range(12)]
    assert max(np.abs(wide)) > 120


def test_bad_arguments_are_refused() -> None:
    for bad in ({"seed": -1}, {"index": -1}, {"size": 16}, {"heads_per_person": 0}):
        with pytest.raises(ValueError, match="seed="):
            render_head(**{"seed": 0, "index": 0, **bad})  # type: ignore[arg-type]
