"""The map of the surroundings: a mirror that blurs loses no light, and what is painted is seen where it was painted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.render.light import KINDS, Light, aimed, cells, draw_light, horizon
from hpe_core.render.person import draw_style
from tests.render.scenes import BALD, WHITE, picture

directions = st.tuples(st.floats(-np.pi, np.pi), st.floats(-1.3, 1.3)).map(lambda at: aimed(*at))


def lamp_like(at: tuple[float, float, float], sharp: float = 20.0) -> np.ndarray:
    """A map that is dark but for a glow."""
    return 0.1 + 3 * np.exp(sharp * (cells() @ np.asarray(at, np.float32) - 1))[..., None].repeat(3, 2)


@settings(max_examples=30, deadline=None)
@given(directions, st.floats(1, 60))
def test_a_mirror_that_blurs_sees_the_glow_where_it_is_and_loses_no_light(
    at: tuple[float, float, float], gloss: float
) -> None:
    light, every = Light(lamp_like(at)), cells().reshape(-1, 3)
    seen = light.radiance(every, gloss)[:, 0]
    assert every[seen.argmax()] @ np.asarray(at) > np.cos(np.radians(20))
    assert seen.mean() == pytest.approx(light.around[..., 0].mean(), rel=0.12)  # the cells' rim blurs unevenly
    assert seen.max() <= light.around.max() * 1.001 and seen.min() >= light.around.min() * 0.999


@settings(max_examples=20, deadline=None)
@given(directions, st.integers(0, 2**31))
def test_a_mirrored_light_is_seen_in_the_mirror(at: tuple[float, float, float], seed: int) -> None:
    light = draw_light(np.random.default_rng(seed))
    one, other = np.asarray([at], np.float32), np.asarray([(-at[0], *at[1:])], np.float32)
    np.testing.assert_allclose(light.mirrored().radiance(other), light.radiance(one), rtol=0.02, atol=1e-3)
    np.testing.assert_array_equal(light.mirrored().mirrored().around, light.around)


def test_what_is_behind_the_head_lights_it_from_behind() -> None:
    white = Light(horizon() * 0).before(np.ones((64, 64, 3), np.float32))
    behind, ahead = np.array([[0, 0, 1.0]], np.float32), np.array([[0, 0, -1.0]], np.float32)
    assert white.radiance(behind).min() > 0.9 and white.radiance(ahead).max() < 0.01
    left = np.zeros((64, 64, 3), np.float32)
    left[:, :32] = 1
    light = Light(horizon() * 0).before(left)
    sides = light.radiance(np.array([[-0.6, 0, 0.8], [0.6, 0, 0.8]], np.float32))[:, 0]
    assert sides[0] > 4 * sides[1]


@pytest.mark.parametrize("side", [-1, 1])
def test_the_side_of_the_face_that_the_glow_is_on_is_the_bright_one(side: int) -> None:
    light = replace(WHITE.light, around=lamp_like(aimed(side * 1.2, 0.1), 4.0), power=0.0)
    grey = picture(BALD, replace(WHITE, light=light)).mean(2)
    middle = grey.shape[1] // 2
    left, right = grey[50:80, middle - 25 : middle - 5].mean(), grey[50:80, middle + 5 : middle + 25].mean()
    assert (right > 1.3 * left) if side > 0 else (left > 1.3 * right)


def test_every_kind_of_light_is_drawn_and_none_is_negative() -> None:
    assert sum(KINDS.values()) == pytest.approx(1)
    lights = [draw_light(np.random.default_rng(k)) for k in range(200)]
    assert all(light.around.min() >= 0 and light.power >= 0 and light.behind > 0 for light in lights)
    levels = [light.around.mean() + light.power for light in lights]
    assert np.percentile(levels, 90) > 2 * np.percentile(levels, 10)  # some are dark


def test_noses_and_mouths_move_in_every_direction() -> None:
    """Every pair of opposite shapes is drawn, both ways; three pairs share one stem."""
    seen = {name for k in range(60) for name, _ in draw_style(3, k).shapes}
    for part in ("nose/nose-trans", "mouth/mouth-trans"):
        assert {f"{part}-{way}" for way in ("up", "down", "in", "out", "forward", "backward")} <= seen
