"""Laws of the axes: their directions are proved from pixels, and mirroring a pose mirrors its picture."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hpe_core.geometry.draw import axis_ends, contact_sheet, draw_axes, draw_landmarks, enlarged
from hpe_core.geometry.rotation import mirror

SIDE = 201
MIDDLE = SIDE / 2


def mask(image: NDArray[np.uint8], channel: int) -> NDArray[np.bool_]:
    """Where one channel is strong and the two others are clearly weaker."""
    pixels = image.astype(int)
    others = np.delete(pixels, channel, axis=2).max(2)
    return (pixels[..., channel] > 140) & (pixels[..., channel] - others > 60)


def centre_of(image: NDArray[np.uint8], channel: int) -> tuple[float, float]:
    """(x, y) of a colour's centre of mass relative to the middle, pixels; y points down."""
    y, x = np.nonzero(mask(image, channel))
    assert len(x), "the axis is not to be seen"
    return float(x.mean() + 0.5 - MIDDLE), float(y.mean() + 0.5 - MIDDLE)


def drawn(pitch: float, yaw: float, roll: float) -> NDArray[np.uint8]:
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    return draw_axes(grey, (pitch, yaw, roll), (MIDDLE, MIDDLE), 80, 3)


RED, GREEN, BLUE = 0, 1, 2


def test_frontal_head_has_red_to_the_side_green_down_and_blue_at_the_centre():
    image = drawn(0, 0, 0)
    red, green, blue = (centre_of(image, channel) for channel in (RED, GREEN, BLUE))
    assert red[0] > 30 and abs(red[1]) < 1
    assert green[1] > 30 and abs(green[0]) < 1
    assert np.hypot(*blue) < 1
    assert mask(image, BLUE).sum() < 40


@pytest.mark.parametrize(
    ("pose", "along"), [((0, 40, 0), (-1, 0)), ((0, -40, 0), (1, 0)), ((30, 0, 0), (0, -1)), ((-30, 0, 0), (0, 1))]
)
def test_blue_follows_the_nose(pose, along):
    """Yaw + turns it to the left of the picture, pitch + lifts it."""
    blue = np.array(centre_of(drawn(*pose), BLUE))
    assert blue @ along > 10 and abs(blue @ along[::-1]) < 2


def test_positive_roll_turns_clockwise_on_screen():
    red, green = (centre_of(drawn(0, 0, 25), channel) for channel in (RED, GREEN))
    assert red[0] > 20 and red[1] > 10  # from the right, downwards
    assert green[0] < -10 and green[1] > 20  # from below, to the left


def test_what_is_nearer_is_drawn_last():
    middle = SIDE // 2
    assert mask(drawn(0, 0, 0), BLUE)[middle, middle]
    assert not mask(drawn(0, 180, 0), BLUE).any()  # the nose points away, hidden behind the other axes


def test_mirrored_pose_is_the_mirrored_picture():
    for pose in np.random.default_rng(0).uniform(-80, 80, (20, 3)):
        ends, twin = axis_ends(pose), axis_ends(mirror(pose))
        flipped = ends * [-1, 1, 1]
        flipped[RED] *= -1  # the head's right becomes its left
        np.testing.assert_allclose(twin, flipped, atol=1e-12)


def test_a_landmark_is_drawn_where_it_lies_green_if_seen_red_if_not_and_not_at_all_if_unknown():
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    image = draw_landmarks(grey, [(40.5, 150.5, 0.9), (160.5, 60.5, 0.1), (np.nan, np.nan, 1.0)], radius=5)
    assert centre_of(image, GREEN) == pytest.approx((40.5 - MIDDLE, 150.5 - MIDDLE), abs=0.3)
    assert centre_of(image, RED) == pytest.approx((160.5 - MIDDLE, 60.5 - MIDDLE), abs=0.3)
    assert mask(image, GREEN)[150, 40] and not mask(image, RED)[60, 160], "what is hidden is a ring"
    nowhere = [(np.nan, np.nan, 1.0), (1e12, 9.0, 1.0), (9.0, -np.inf, 1.0)]
    assert (draw_landmarks(grey, nowhere) == grey).all() and (grey == 128).all()


def test_drawing_copies_and_the_defaults_fit_small_pictures():
    crop = np.full((64, 64, 3), 128, np.uint8)
    image = draw_axes(crop, (10, 20, 30))
    assert (crop == 128).all() and image.shape == crop.shape and (image != 128).any()
    assert enlarged(crop[:, :32], 128).shape == (128, 64, 3)


def test_contact_sheet_holds_every_picture_unchanged():
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (30, 40, 3), dtype=np.uint8) for _ in range(5)]
    sheet = contact_sheet(pictures, 3, ["a\nb"] * 5, pad=4)
    rows = [sheet[y : y + 30, x : x + 40] for y in range(len(sheet) - 29) for x in (4, 48, 92)]
    for picture in pictures:
        assert any(np.array_equal(picture, place) for place in rows)
    mixed = [3, 0, 4, 1, 2]
    other = contact_sheet([pictures[i] for i in mixed], 3, [f"{i}" for i in mixed], pad=4)
    plain = contact_sheet(pictures, 3, [f"{i}" for i in range(5)], pad=4)
    cells = [
        [sheet[y : y + len(sheet) // 2 - 3, x : x + 40] for y in (4, len(sheet) // 2 + 2) for x in (4, 48, 92)]
        for sheet in (plain, other)
    ]
    assert all(np.array_equal(cells[0][i], cell) for i, cell in zip(mixed, cells[1], strict=False)), "each its caption"
    for wrong in ([], pictures):
        with pytest.raises(ValueError, match="contact sheet|captions"):
            contact_sheet(wrong, 3, ["one"])
