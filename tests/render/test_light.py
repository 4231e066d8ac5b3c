"""The map of the surroundings: a mirror that blurs loses no light, and what is painted is seen where it was painted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.render import draw, scene
from hpe_core.render.light import KINDS, Light, aimed, cells, draw_light, horizon, nostrils
from hpe_core.render.person.anatomy import anatomy, average_adult
from tests.render.scenes import BALD, WHITE, mirrored_light, picture

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
    np.testing.assert_allclose(mirrored_light(light).radiance(other), light.radiance(one), rtol=0.02, atol=1e-3)


def test_what_is_behind_the_head_lights_it_from_behind() -> None:
    white = Light(horizon() * 0).before(np.ones((64, 64, 3), np.float32))
    behind, ahead = np.array([[0, 0, 1.0]], np.float32), np.array([[0, 0, -1.0]], np.float32)
    assert white.radiance(behind).min() > 0.9 and white.radiance(ahead).max() < 0.01
    half = np.zeros((64, 64, 3), np.float32)
    half[:, :32] = 1
    for picture_of, way in ((half, [-0.6, 0, 0.8]), (half.transpose(1, 0, 2), [0, -0.6, 0.8])):
        light, there = Light(horizon() * 0).before(picture_of), np.array([way], np.float32)
        assert light.radiance(there).min() > 4 * light.radiance(there * np.float32([-1, -1, 1])).max()


def test_a_glow_behind_the_head_outlives_a_dark_background() -> None:
    glow = Light(lamp_like((0.0, 0.0, 1.0)))
    dark = glow.before(np.full((64, 64, 3), 0.05, np.float32))
    np.testing.assert_array_equal(dark.around, glow.around)


@pytest.mark.parametrize("side", [-1, 1])
def test_the_side_of_the_face_that_the_glow_is_on_is_the_bright_one(side: int) -> None:
    light = replace(WHITE.light, around=lamp_like(aimed(side * 1.2, 0.1), 4.0), power=0.0)
    grey = picture(BALD, replace(WHITE, light=light)).mean(2)
    middle = grey.shape[1] // 2
    left, right = grey[50:80, middle - 25 : middle - 5].mean(), grey[50:80, middle + 5 : middle + 25].mean()
    assert (right > 1.3 * left) if side > 0 else (left > 1.3 * right)


def test_every_kind_of_light_is_what_it_is_called() -> None:
    def drawn(kind: str) -> list[Light]:
        return [draw_light(np.random.default_rng(k), kind) for k in range(60)]

    lights = {kind: drawn(kind) for kind in KINDS}
    assert all(x.around.min() >= 0 and x.power >= 0 and x.behind > 0 for many in lights.values() for x in many)

    def level(kind: str) -> float:
        return float(np.mean([x.around.mean() for x in lights[kind]]))

    assert all(x.lamp[2] < -0.95 for x in lights["flash"]) and all(x.power <= 0.4 for x in lights["shade"])
    assert all(x.power >= 0.9 and x.lamp[1] < -0.2 for x in lights["sun"])
    assert level("dark") < level("night") < 0.6 * level("sun") and level("window") < level("shade")
    assert all(x.behind < 0.75 for kind in ("night", "dark") for x in lights[kind])
    assert all(x.behind == 1 for kind in ("sun", "shade", "window", "room") for x in lights[kind])
    sharp = {kind: np.mean([x.around.max() / x.around.mean() for x in lights[kind]]) for kind in ("night", "shade")}
    assert sharp["night"] > 3 * sharp["shade"]
    one, two = (draw_light(np.random.default_rng(8)) for _ in range(2))
    assert one.lamp == two.lamp and (one.around == two.around).all()


def test_nostrils_are_dark_and_lips_and_the_tip_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = anatomy()
    deep, points = nostrils(), shared.shaped(average_adult())
    marks = shared.landmarks_of(points)
    np.testing.assert_allclose(deep[shared.mirror], deep, atol=0.1)

    def deepest(mark: int, within: float) -> float:
        return float(deep[np.linalg.norm(points - marks[mark], axis=1) < within].max(initial=0))

    assert deepest(32, 7.0) > 0.5 and deepest(34, 7.0) > 0.5
    lamp = replace(WHITE, pose=(50.0, 0.0, 0.0), light=Light(horizon() * 0, lamp=(0.0, 0.0, -1.0)))
    dark = picture(BALD, lamp).min(2)
    monkeypatch.setattr(draw, "nostrils", lambda: 0 * deep)
    assert (picture(BALD, lamp).min(2) - dark).max() > 0.1  # in the lamp's light, too
    assert max(deepest(mark, 4.0) for mark in (30, 48, 51, 54, 57, 62)) < 0.1


def test_a_picture_s_background_lights_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is as bright as its light says."""
    seen = []
    white = np.ones((128, 128, 3), np.float32)
    monkeypatch.setattr(scene, "draw_background", lambda rng, side: white)
    drawn = scene.render_scene
    monkeypatch.setattr(scene, "render_scene", lambda *words: seen.append(words[1:]) or drawn(*words))
    for index in range(12):
        scene.render_head(4, index, size=64)
    for said, _, background in seen:
        assert background == pytest.approx(said.light.behind)
        assert said.light.radiance(np.array([[0, 0, 1.0]], np.float32)).min() > 0.9 * said.light.behind
    assert len({said.light.behind for said, _, _ in seen}) > 1
