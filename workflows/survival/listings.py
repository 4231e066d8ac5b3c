"""Drills with bad files: what users' folders hold goes through the shards stage, and every face is accounted for.

The faces are rendered heads. One listing has sound rows alone; another has the same rows, and bad ones between them. A
bad row must be named in the quarantine with its reason, and no sound row may come out with other bytes.
"""

import csv
import io
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image as Pil

from hpe_core.data.rows import read_shard
from hpe_core.geometry.crop import Image, encoded
from hpe_core.geometry.rotation import euler_to_matrix
from hpe_core.render.person.anatomy import landmark_targets
from hpe_core.render.scene import RenderedHead, render_head
from workflows.engine.config import EXIT_BAD_INPUT
from workflows.storage.code import ROOT
from workflows.survival.ground import Ground, Lost, expect, last, made_in
from workflows.survival.nodes import Cluster
from workflows.survival.told import Hit

SOUND = 36  # faces of the listing, by 12 people; every third person is for testing
MUTANTS = 600
KINDS = ("bytes", "bit", "cut", "zero", "delete", "insert")  # of mutations
FRONTAL_DEG = 45  # no configuration's limit is below
SPLITS = ("train", "train", "val", "test")


@cache
def head(number: int) -> RenderedHead:
    return render_head(5, number, size=96)


def jpeg(image: Image) -> bytes:
    return encoded(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 97])


def row(number: int, path: str, **changes: object) -> dict[str, object]:
    """A line of the table for a head."""
    shown = head(number)
    box = shown.box
    found: dict[str, object] = {"path": path, "group": f"person{number // 3}", "split": SPLITS[number // 3 % 4]}
    found |= dict(zip(("pitch", "yaw", "roll"), shown.pose, strict=True))
    return found | {"x1": box.x1, "y1": box.y1, "x2": box.x2, "y2": box.y2} | changes


@dataclass(frozen=True)
class Bad:
    """A row that must be rejected: how its picture is written, and what its line says otherwise."""

    fault: str
    name: str
    write: Callable[[Path], object]
    changes: dict[str, object]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """A PNG of a few bytes that claims 60,000 by 60,000 pixels."""
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def talking_bomb(sound: bytes) -> bytes:
    """A sound PNG with a text that unpacks to 200 MB."""
    packed = zlib.compressobj(9)
    text = b"".join([*(packed.compress(bytes(1_000_000)) for _ in range(200)), packed.flush()])
    at = 8 + 25  # behind the header
    return sound[:at] + chunk(b"zTXt", b"Comment\0\0" + text) + sound[at:]


def endless() -> bytes:
    """A progressive JPEG whose last scan is there many times, each a walk over the whole picture.

    Some hundred kilobytes that keep a decoder busy for minutes.
    """
    out = io.BytesIO()
    Pil.new("L", (8000, 8000), 128).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    place, segments = 2, list[bytes]()
    while data[place + 1] != 0xD9:  # the end of the picture
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place + 1] == 0xDA:  # a scan: its data follow, to the next marker
            while not (data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))):
                end += 1
        segments.append(data[place:end])
        place = end
    return data[:place] + segments[-1] * 4000 + data[place:]


def bad_rows() -> list[Bad]:
    image = head(0).image
    whole = jpeg(image)

    def sound(path: Path) -> object:
        return path.write_bytes(encoded(image))

    return [
        Bad("poison row", "empty.png", lambda path: path.write_bytes(b""), {}),
        Bad("poison row", "words.png", lambda path: path.write_text("no picture"), {}),
        Bad("poison row", "gone.png", lambda path: None, {}),
        Bad("poison row", "pipe.png", os.mkfifo, {}),  # whoever opens it waits for ever
        Bad("poison row", "endless.jpg", lambda path: path.write_bytes(endless()), {}),
        Bad("truncated JPEG", "half.jpg", lambda path: path.write_bytes(whole[: len(whole) // 2]), {}),
        Bad("NaN, box, duplicate", "nan.png", sound, {"yaw": "nan"}),
        Bad("NaN, box, duplicate", "outside.png", sound, {"x1": 9000, "x2": 9050}),
        Bad("NaN, box, duplicate", "flat.png", sound, {"x2": row(0, "")["x1"]}),
        Bad("bomb", "bomb.png", lambda path: path.write_bytes(bomb()), {}),
        Bad("bomb", "text.png", lambda path: path.write_bytes(talking_bomb(encoded(image))), {}),
    ]


def special_rows() -> list[tuple[str, Callable[[Path], object], float]]:
    """(name, how it is written, grey levels by which its crop may differ from the plain picture's)."""
    image = head(0).image
    deep = cv2.cvtColor(image.astype(np.uint16) * 257, cv2.COLOR_RGB2BGR)
    tagged = Pil.fromarray(image)  # labels are of the pixels as they are stored, whatever a tag says
    exif = Pil.Exif()
    exif[0x0112] = 6

    return [
        ("deep.png", lambda path: path.write_bytes(bytes(cv2.imencode(".png", deep)[1])), 0.01),
        ("turned.jpg", lambda path: tagged.save(path, exif=exif, quality=97), 3.0),
        ("cmyk.jpg", lambda path: Pil.fromarray(image).convert("CMYK").save(path, quality=97), 12.0),
    ]


def write_listing(root: Path, *, with_bad: bool) -> dict[str, str]:
    """The table and its pictures; returns path -> fault of the rows that must be rejected."""
    rows = []
    for number in range(SOUND):
        (root / f"{number:02d}.png").write_bytes(encoded(head(number).image))
        rows.append(row(number, f"{number:02d}.png"))
    rejected = {}
    if with_bad:
        for place, bad in enumerate(bad_rows()):
            bad.write(root / bad.name)
            rows.insert(4 * place, row(0, bad.name, **bad.changes))
            rejected[bad.name] = bad.fault
        for name, write, _ in special_rows():
            write(root / name)
            rows.insert(5, row(0, name))
        rows.append(row(1, "01.png", id="01.png"))  # a row once more, under the same name
    with (root / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [*row(0, ""), "id"])
        table.writeheader()
        table.writerows(rows)
    return rejected


def overlay(path: Path, reader: str, root: Path) -> str:
    """A configuration that is laid over the campaign's: this dataset, and no other."""
    wild = {"reader": reader, "root": str(root)} | ({} if reader == "manifest" else {"val": 0.1, "test": 0.2})
    data = {"datasets": {"heads": None, "wild": wild}, "train": ["wild"], "test": ["wild"], "max_bad_share": 1.0}
    path.write_text(yaml.safe_dump({"data": data, "evaluate": {"protocol": ""}}))
    return str(path)


def pixels(store: Path) -> dict[str, tuple[bytes, bytes, Image]]:
    """sample_id -> bytes of its picture, bytes of its angles, its picture."""
    found: dict[str, tuple[bytes, bytes, Image]] = {}
    for file in store.glob("shards/*/*/part-*.parquet"):
        shard = read_shard(file)
        for name, image, angles in zip(shard.sample_ids, shard.images, shard.angles, strict=True):
            found[str(name)] = (image.tobytes(), angles.tobytes(), image)
    return found


def quarantined(store: Path) -> dict[str, str]:
    """sample_id -> reason."""
    found = dict[str, str]()
    for file in store.glob("shards/*/quarantine.csv"):
        with file.open(newline="") as stream:
            found |= {line["sample_id"]: line["reason"] for line in csv.DictReader(stream)}
    return found


def counted(store: Path) -> dict[str, int]:
    """What the shards stage counts. Raises Lost where faces do not add up."""
    found = {key: int(made_in(store).result("shards")[key]) for key in ("input", "kept", "quarantined", "filtered")}
    expect(found["kept"] + found["quarantined"] + found["filtered"] == found["input"], f"faces do not add up: {found}")
    return found


def listing(ground: Ground, cluster: Cluster) -> dict[str, list[Hit] | Lost]:
    """The shards of a listing with bad rows between its sound ones; what became of each kind."""
    stores = {}
    for name, with_bad in (("sound", False), ("poison", True)):
        store = ground.store(f"listing-{name}")
        root = fresh(store.with_name(f"listing-faces-{name}"))
        rejected = write_listing(root, with_bad=with_bad)
        ground.run("shards", store, files=[overlay(store.with_name(f"listing-{name}.yaml"), "manifest", root)])
        stores[name] = store
    sound, mixed = pixels(stores["sound"]), pixels(stores["poison"])
    reasons, _ = quarantined(stores["poison"]), counted(stores["poison"])
    changed = [name for name, shown in sound.items() if name not in mixed or mixed[name][:2] != shown[:2]]
    expect(not changed, f"sound rows came out otherwise: {', '.join(changed[:3])}")
    found: dict[str, list[Hit] | Lost] = {}
    for name, fault in rejected.items():
        hits = found.setdefault(fault, [])
        if name in mixed or name not in reasons:
            found[fault] = Lost(f"{name} is {'kept' if name in mixed else 'neither kept nor rejected'}")
        elif isinstance(hits, list):
            hits.append(Hit(name, f"rejected: {reasons[name]}", None))
    found["16-bit, EXIF, CMYK"] = specials(mixed)
    return found


def specials(mixed: dict[str, tuple[bytes, bytes, Image]]) -> list[Hit] | Lost:
    """Pictures of unusual kinds are read as what they show."""
    plain, hits = mixed["00.png"][2].astype(float), []
    for name, _, allowed in special_rows():
        if name not in mixed:
            return Lost(f"{name} is not kept")
        apart = float(np.abs(mixed[name][2].astype(float) - plain).mean())
        if not apart <= allowed:
            return Lost(f"{name} differs from the plain picture by {apart:.1f} grey levels")
        hits.append(Hit(name, f"read, {apart:.2f} grey levels from the plain picture", None))
    return hits


def mutated(data: bytes, number: int) -> bytes:
    """Bytes or a bit overwritten, the end cut off, or a stretch of up to 64 bytes zeroed, deleted or inserted."""
    rng, kind, out = np.random.default_rng(number), KINDS[number % len(KINDS)], bytearray(data)
    place, length = int(rng.integers(len(out))), int(rng.integers(1, 65))
    if kind == "bytes":
        for position in rng.integers(0, len(out), rng.integers(1, 6)):
            out[position] = int(rng.integers(256))
    elif kind == "bit":
        out[place] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del out[place:]
    elif kind == "zero":
        out[place : place + length] = bytes(len(out[place : place + length]))
    elif kind == "delete":
        del out[place : place + length]
    else:
        out[place:place] = rng.bytes(length)
    return bytes(out)


def write_pair(root: bytes, name: bytes, number: int, pose: Sequence[float], *, change: int = 0) -> None:
    """A face of AFLW2000: a picture, and its .mat with pose and landmarks, some of its bytes drawn anew."""
    import scipy.io

    points = (0.35 * landmark_targets() @ euler_to_matrix(head(number).pose).T + [48, 48, 0]).T
    variables = {"Pose_Para": np.array([[*np.radians(pose), 1, 2, 3, 0.001]], np.float32), "pt3d_68": points}
    file = os.fsdecode(os.path.join(root, name + b".mat"))
    scipy.io.savemat(file, variables)
    content = Path(file).read_bytes()
    if change:
        content = mutated(content, change)
    for ending, data in ((b".mat", content), (b".jpg", jpeg(head(number).image))):
        with open(os.path.join(root, name + ending), "wb") as stream:
            stream.write(data)


def mutants(ground: Ground, cluster: Cluster) -> dict[str, list[Hit] | Lost]:
    """An AFLW2000 of sound faces, one under a name that is no UTF-8, and 600 whose .mat has been damaged."""
    store = ground.store("mutants")
    root = fresh(store.with_name("mutants-faces"))
    place = os.fsencode(root)
    facing = [number for number in range(SOUND) if max(map(abs, head(number).pose)) < FRONTAL_DEG]
    names = [f"sound{number:02d}" for number in facing]
    for number, name in zip(facing, names, strict=True):
        write_pair(place, name.encode(), number, head(number).pose)
    write_pair(place, b"caf\xe9", facing[0], head(facing[0]).pose)
    for change in range(1, MUTANTS + 1):
        number = facing[change % len(facing)]
        write_pair(place, f"mutant{change:03d}".encode(), number, head(number).pose, change=change)
    file = overlay(store.with_name("mutants.yaml"), "aflw2000", root)
    ground.run("shards", store, files=[file])
    counts, kept = counted(store), pixels(store)
    expect(counts["input"] == MUTANTS + len(facing) + 1, f"faces do not add up: {counts}")
    lost = [name for name in names if name not in kept]
    expect(not lost, f"sound faces were rejected: {', '.join(lost)}")
    strange = [name for name in kept if name.startswith("caf")]
    read = counts["kept"] - len(facing) - 1
    told = f"{read} still read, {counts['quarantined']} rejected, {counts['filtered']} out of range"
    return {
        "600 .mat mutants": [Hit("shards", told, None)],
        "non-UTF-8 path": [Hit("shards", f"kept as {strange[0]}", None)] if strange else Lost("it was not read"),
    }


def fresh(root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    return root


def advice(ground: Ground, cluster: Cluster) -> list[Hit]:
    """A listing without a row; an archive whose yaw has the other sign."""
    store = ground.store("advice")
    root = fresh(store.with_name("advice-empty"))
    (root / "manifest.csv").write_text(",".join(row(0, "")) + "\n")
    command = ground.start("shards", store, files=[overlay(store.with_name("advice.yaml"), "manifest", root)])
    code, said = command.wait(), last(command.text)
    expect(code == EXIT_BAD_INPUT and said.startswith("error: "), f"an empty listing: exit code {code}, {said}")
    root = fresh(store.with_name("advice-mirrored"))
    for number in range(40):
        pitch, yaw, roll = head(number % 24).pose
        write_pair(os.fsencode(root), f"image{number:02d}".encode(), number % 24, (pitch, -yaw, roll))
    words = [sys.executable, str(ROOT / "workflows" / "doctor.py"), "reader=aflw2000", f"root={root}"]
    looked = ground.begin(words, store.with_name("advice.doctor.log"))
    code = looked.wait()
    advised = [line for line in looked.text.splitlines() if line.startswith("error") and "convention" in line]
    expect(code == EXIT_BAD_INPUT and bool(advised), f"the doctor sees nothing: exit code {code}")
    return [Hit("an empty listing", said[:160], None), Hit("yaw of the other sign", advised[0][:200], None)]
