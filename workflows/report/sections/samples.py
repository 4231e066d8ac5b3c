"""Faces of every dataset as the network sees them."""

from collections.abc import Iterator

from hpe_core.data.rows import read_shard, shard_files
from hpe_core.datasets.registry import readers
from hpe_core.geometry.crop import window
from workflows.export.faces import evenly
from workflows.report import figures
from workflows.report.material import Material, Section

SAMPLES = 16


def samples(material: Material) -> Iterator[Section]:
    data, sheets = material.spec.data, []
    names = dict.fromkeys([*data.train, *data.test])
    for name, split in ((name, "train" if name in data.train else "test") for name in names):
        files = shard_files(material.stage.inputs["shards"], name, split)
        if files:
            shard = read_shard(files[0])
            picked = evenly(len(shard), SAMPLES)
            sheet = figures.sample_sheet(window(shard.images[picked], data.crop.size), shard.angles[picked])
            sheets.append((name, split, material.book.faces(f"samples_{name}_{split}", sheet)))
    used = {name: readers()[data.datasets[name].reader] for name in names}
    owned = {name: reader.terms.allowed for name, reader in used.items() if reader.photographs}
    yield Section("Sample crops", "samples", {"sheets": sheets, "owned": owned})
