"""Who is drawn: the numbers of a person, and the lots that decide them.

`HeadStyle()` is the average adult with short dark hair and a T-shirt, symmetric and without noise; `draw_style` draws a
person of the world. Colours are sRGB in 0..1, lengths are millimetres, all else is a share of what is usual.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from hpe_core.render.person.anatomy import ANCESTRIES, MEANS, SEXES, SHARES, anatomy, average_adult, milder

RGB = tuple[float, float, float]
Cut = Literal[
    "bald", "shaved", "short", "crop", "side", "wavy", "curly", "afro", "bob", "long", "bun", "ponytail", "back"
]
Hat = Literal["none", "cap", "beanie", "scarf", "helmet", "hood", "brim"]
Glasses = Literal["none", "clear", "sun"]
Cloth = Literal["tee", "vneck", "shirt", "suit", "hoodie", "turtle", "bare"]

# Measured skins, from fair to dark (sRGB of the forehead in daylight).
SKINS = np.array(
    [[0.93, 0.77, 0.69], [0.90, 0.71, 0.61], [0.84, 0.64, 0.52], [0.76, 0.55, 0.43], [0.63, 0.44, 0.33],
     [0.47, 0.32, 0.24], [0.34, 0.23, 0.18]]
)  # fmt: skip
HAIRS: dict[str, tuple[float, float, float]] = {
    "black": (0.075, 0.065, 0.06),
    "dark": (0.15, 0.105, 0.08),
    "brown": (0.27, 0.18, 0.12),
    "light": (0.43, 0.31, 0.20),
    "blond": (0.66, 0.53, 0.35),
    "red": (0.45, 0.21, 0.10),
}
CUTS: dict[str, dict[Cut, float]] = {
    "female": {"long": 30, "wavy": 20, "bob": 14, "bun": 12, "ponytail": 9, "curly": 7, "side": 4, "short": 3,
               "afro": 4, "crop": 2, "back": 3, "shaved": 1},
    "male": {"short": 26, "side": 18, "crop": 18, "shaved": 9, "bald": 8, "curly": 5, "wavy": 4, "back": 8, "afro": 2,
             "long": 3, "bun": 2},
    "child": {"short": 24, "side": 8, "crop": 10, "curly": 8, "wavy": 10, "long": 16, "bob": 12, "ponytail": 8,
              "bun": 4},
}  # fmt: skip
SPREAD = {
    "asym": 0.22, "cheek": 0.35, "chin": 0.32, "ears": 0.30, "eyebrows": 0.30, "eyes": 0.28, "forehead": 0.28,
    "head": 0.16, "mouth": 0.28, "neck": 0.22, "nose": 0.26,
}  # fmt: skip
NARROW = {"mouth/mouth-trans-in": 0.2, "nose/nose-trans-in": 0.2}  # to one side
ENDS = (("decr", "incr"), ("down", "up"), ("in", "out"), ("backward", "forward"), ("concave", "convex"),
        ("compress", "uncompress"), ("l", "r"))  # fmt: skip


@dataclass(frozen=True)
class HeadStyle:
    """Everything that is the person; scene, pose and expression are not."""

    shapes: tuple[tuple[str, float], ...] = tuple(average_adult().items())
    noise_seed: int = 0
    symmetric: bool = True
    female: float = 0.5
    age: float = 30.0  # years
    skin: RGB = (0.84, 0.64, 0.52)
    lip: RGB = (0.70, 0.42, 0.38)
    iris: RGB = (0.28, 0.19, 0.11)
    hair_color: RGB = (0.15, 0.105, 0.08)
    redness: float = 0.3
    blotches: float = 0.0
    freckles: float = 0.0
    shine: float = 0.5
    shadow: float = 0.0  # eye make-up
    brow_thickness: float = 1.0
    brow_density: float = 0.8
    lashes: float = 0.5
    cut: Cut = "short"
    hair_length: float = 60.0
    hair_volume: float = 10.0
    hairline: float = 0.0  # mm that it has receded
    temples: float = 0.0  # more of that at the temples
    curl: float = 0.0
    fringe: float = 0.0
    parting: float = 0.0
    grey: float = 0.0
    stubble: float = 0.0
    beard: float = 0.0  # mm
    beard_area: float = 1.0  # 1 all, 0.5 chin and lip
    moustache: float = 0.0
    hat: Hat = "none"
    hat_color: RGB = (0.2, 0.2, 0.3)
    glasses: Glasses = "none"
    frame: RGB = (0.08, 0.07, 0.07)
    frame_size: float = 1.0
    frame_round: float = 3.0
    rim: float = 2.0
    mask: bool = False
    mask_color: RGB = (0.75, 0.83, 0.88)
    cloth: Cloth = "tee"
    cloth_color: RGB = (0.3, 0.35, 0.45)
    cloth_second: RGB = (0.85, 0.85, 0.85)
    stripes: float = 0.0
    earrings: bool = False


@lru_cache(maxsize=256)
def draw_style(seed: int, person: int) -> HeadStyle:
    """The person number `person` of the data set `seed`: same numbers, same person, in any process."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, person]))

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    def color(spread: float = 0.35) -> RGB:
        c = rng.beta(0.9, 1.1) + rng.normal(0, spread * rng.random() ** 1.5, 3)
        return _rgb(np.clip(c, 0.03, 0.95))

    years = float(rng.uniform(6, 17) if chance(0.12) else 18 + 62 * rng.beta(1.1, 1.7))
    woman = chance(0.48)
    female = float(np.clip((0.9 if woman else 0.1) + rng.normal(0, 0.12), 0, 1))
    lead = int(rng.choice(3, p=SHARES))
    ancestry = rng.dirichlet(np.full(3, 0.25)) * rng.uniform(0, 0.6)
    ancestry[lead] += 1 - ancestry.sum()
    tone = float(np.clip(ancestry @ [4.9, 2.0, 1.0] + rng.normal(0, 0.75), 0, 6))
    skin = np.array([np.interp(tone, range(7), SKINS[:, k]) for k in range(3)])
    skin = np.clip(skin * (1 + rng.normal(0, 0.025)) + rng.normal(0, 0.012, 3), 0.1, 0.97)

    fair = float(np.clip(ancestry[2] * 1.3 - 0.3, 0, 1)) * (tone < 2.5)
    odds = np.array(
        [0.50 - 0.35 * fair, 0.35 - 0.05 * fair, 0.1 + 0.22 * fair, 0.03 + 0.2 * fair, 0.2 * fair, 0.05 * fair]
    )
    hair = np.array(HAIRS[str(rng.choice(list(HAIRS), p=odds / odds.sum()))]) * np.exp(rng.normal(0, 0.15))
    grey = float(np.clip((years - 35) / 35 + rng.normal(0, 0.3), 0, 1)) if years > 35 else 0.0
    if woman and chance(0.6):
        grey *= 0.2
    hair = np.clip(hair + (np.array([0.70, 0.69, 0.68]) - hair) * grey * 0.85, 0.03, 0.9)
    if woman and chance(0.02):
        hair = np.array(color(0.5))
    lip = skin * [0.86, 0.62, 0.62] + rng.normal(0, 0.015, 3)
    made_up = woman and years > 15 and chance(0.45)
    if made_up:
        lipstick = np.array([[0.62, 0.10, 0.14], [0.72, 0.30, 0.32], [0.55, 0.16, 0.25], [0.75, 0.42, 0.38]])
        lip += (lipstick[int(rng.integers(4))] - lip) * rng.uniform(0.2, 0.85)
    irises = np.array(
        [[0.17, 0.10, 0.06], [0.28, 0.18, 0.09], [0.35, 0.33, 0.17], [0.36, 0.46, 0.54], [0.45, 0.50, 0.50]]
    )
    pale = 0.55 * fair
    iris = irises[int(rng.choice(5, p=[0.6 - 0.6 * pale, 0.4 - 0.4 * pale, 0.35 * pale, 0.45 * pale, 0.2 * pale]))]

    kind = "child" if years < 13 else "female" if woman else "male"
    cuts = dict(CUTS[kind])
    if lead == 0:
        cuts |= {"afro": 16, "curly": 18} if woman else {"afro": 16, "curly": 12, "crop": 22, "shaved": 14}
        cuts["side"] = cuts.get("side", 0) * 0.2
    share = np.array(list(cuts.values()))
    cut: Cut = list(cuts)[int(rng.choice(len(cuts), p=share / share.sum()))]
    losing = not woman and years > 28 and chance(0.45)
    bearded = not woman and years > 19
    stubble = float(rng.uniform(0.1, 0.9) if bearded and chance(0.75) else 0)
    full, chin_only, lip_only = (bearded and chance(p) for p in (0.24, 0.10, 0.10))
    hats: list[Hat] = ["cap", "beanie", "scarf", "helmet", "hood", "brim"]
    hat_odds = np.array([0.30, 0.17, 0.24 if woman else 0.02, 0.11, 0.1, 0.12])
    hat: Hat = hats[int(rng.choice(6, p=hat_odds / hat_odds.sum()))] if chance(0.17) else "none"
    glasses: Glasses = "sun" if chance(0.06) else "clear" if chance(0.16 + 0.15 * (years > 50)) else "none"
    cloths: list[Cloth] = ["tee", "vneck", "shirt", "suit", "hoodie", "turtle", "bare"]
    cloth: Cloth = cloths[int(rng.choice(7, p=[0.27, 0.15, 0.20, 0.15, 0.1, 0.07, 0.06]))]
    frames: list[RGB] = [(0.06, 0.06, 0.06), (0.25, 0.15, 0.08), (0.6, 0.58, 0.55), (0.55, 0.42, 0.2), color(0.4)]
    lengths = {"short": (25, 55), "crop": (8, 20), "side": (45, 85), "wavy": (70, 300), "curly": (60, 220),
               "afro": (30, 75), "bob": (130, 190), "long": (220, 420), "back": (60, 110)}  # fmt: skip
    return HeadStyle(
        shapes=tuple(_draw_shapes(rng, female, ancestry, years).items()),
        noise_seed=int(rng.integers(2**31)),
        symmetric=False,
        female=female,
        age=years,
        skin=_rgb(skin),
        lip=_rgb(np.clip(lip, 0.05, 0.95)),
        iris=_rgb(np.clip(iris * np.exp(rng.normal(0, 0.15)), 0.03, 0.7)),
        hair_color=_rgb(hair),
        redness=float(rng.beta(1.5, 3)),
        blotches=float(rng.uniform(0.2, 1.0)),
        freckles=float(rng.uniform(0.3, 1) if tone < 2 and chance(0.14) else 0),
        shine=float(rng.beta(2, 3) * 1.9),
        shadow=float(rng.uniform(0.2, 1) if made_up and chance(0.6) else 0),
        brow_thickness=float(np.clip((0.8 if woman else 1.05) + rng.normal(0, 0.2), 0.4, 1.6)),
        brow_density=float(np.clip(rng.normal(0.75, 0.2), 0.2, 1.0) * (0.8 if fair > 0.5 else 1)),
        lashes=float(np.clip((0.75 if woman else 0.35) + 0.3 * made_up + rng.normal(0, 0.15), 0, 1.2)),
        cut=cut,
        hair_length=float(rng.uniform(*lengths.get(cut, (40.0, 60.0)))),
        hair_volume=float(rng.uniform(5, 16)),
        hairline=float(rng.normal(0, 4) + losing * rng.uniform(0, 38)),
        temples=float(losing * rng.uniform(5, 35) + abs(rng.normal(0, 4))),
        curl=float(rng.uniform(0, 0.35) if cut not in ("curly", "afro", "wavy") else rng.uniform(0.6, 1.0)),
        fringe=float(rng.uniform(0.5, 1) if cut in ("bob", "long", "short", "wavy") and chance(0.3) else 0),
        parting=float(rng.choice([-1.0, 1.0]) * rng.uniform(0, 1)),
        grey=grey,
        stubble=stubble if not (full or chin_only) else max(stubble, 0.6),
        beard=float(rng.uniform(4, 22) * rng.random() if full or chin_only else 0),
        beard_area=1.0 if full else 0.45,
        moustache=float(rng.uniform(0.4, 1) if full or chin_only or lip_only else 0),
        hat=hat,
        hat_color=color(),
        glasses=glasses,
        frame=frames[int(rng.integers(5))],
        frame_size=float(rng.uniform(0.85, 1.2)),
        frame_round=float(rng.uniform(2.2, 5)),
        rim=float(rng.choice([0.8, 1.6, 2.6, 3.6])),
        mask=chance(0.03),
        mask_color=color(0.2) if chance(0.4) else (0.72, 0.82, 0.88),
        cloth=cloth,
        cloth_color=color() if cloth != "suit" else _rgb(np.full(3, rng.uniform(0.05, 0.35)) + rng.normal(0, 0.02, 3)),
        cloth_second=color(0.25) if chance(0.5) else (0.88, 0.88, 0.9),
        stripes=float(rng.uniform(0.3, 1) if chance(0.12) else 0),
        earrings=woman and chance(0.3),
    )


def _rgb(color: np.ndarray) -> RGB:
    c = np.clip(color, 0.0, 1.0)
    return (float(c[0]), float(c[1]), float(c[2]))


@lru_cache(maxsize=1)
def _stems() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Local shapes, (stem, the one or two ends that oppose each other), right and left of a pair as one stem."""
    names = {name for name in anatomy().shapes if not name.startswith(("macrodetails", "faceunits"))}
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(names):
        stem, _, end = name.rpartition("-")
        pair = next((pair for pair in ENDS if end in pair), None)
        if pair and all(f"{stem}-{e}" in names for e in pair):
            found[f"{stem}-{pair[0]}"] = tuple(f"{stem}-{e}" for e in pair)
        else:
            found[name] = (name,)
    return tuple(found.items())


def _draw_shapes(rng: np.random.Generator, female: float, ancestry: np.ndarray, years: float) -> dict[str, float]:
    """Weights of shapes. Sex, age and ancestry mix MakeHuman's corners; what is local spreads round them."""
    sexes = dict(zip(SEXES, (female, 1 - female), strict=True))
    old = float(np.clip((years - 25) / 65, 0, 1))
    child = float(np.clip((25 - years) / 13, 0, 1))
    ages = {"child": child, "old": old, "young": 1 - child - old}
    weight = float(np.clip(rng.normal(0.05, 0.45), -1, 1))
    out = {}
    for sex, s in sexes.items():
        for age, a in ages.items():
            for name, share in zip(ANCESTRIES, milder(ancestry.tolist()), strict=True):
                out[f"macrodetails/{name}-{sex}-{age}"] = s * a * float(share)
            end = "max" if weight > 0 else "min"
            out[f"macrodetails/universal-{sex}-{age}-averagemuscle-{end}weight"] = s * a * abs(weight)
    left: dict[str, float] = {}
    for stem, ends in _stems():
        room = stem.split("/")[0]
        mean = MEANS.get(ends[-1], 0.0) - MEANS.get(ends[0], 0.0)
        draw = min(max(rng.normal(mean, SPREAD[room] * NARROW.get(stem, 1.0)), -0.75), 0.75)
        if stem.startswith("head/head-fat"):
            draw = min(max(0.6 * weight + draw, -0.8), 0.8)
        twin = stem.replace("/r-", "/l-")
        if twin == stem:
            left[stem] = draw
        else:
            draw = left.get(twin, draw) + 0.12 * draw  # a face's halves differ a little
        if len(ends) == 2:
            out[ends[int(draw > 0)]] = abs(draw)
        elif rng.random() < 0.12:
            out[ends[0]] = abs(draw) * 1.5
    return {name: round(value, 4) for name, value in out.items() if abs(value) > 0.01}
