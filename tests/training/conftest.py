"""Shards and soft labels of the configuration that tests of training share."""

from pathlib import Path

import numpy as np
import pytest

from hpe_core.data.rows import write_shard, write_soft_labels
from tests.faces import CROP, face_row
from tests.training.pipelines import LABELS, SIZES


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards of SIZES, and soft labels that say which row they belong to: all are the row's yaw / 100."""
    root, first = tmp_path_factory.mktemp("faces"), 0
    for (name, split), count in SIZES.items():
        for part, start in enumerate(range(first, first + count, 9)):
            rows = [face_row(i) for i in range(start, min(start + 9, first + count))]
            place = Path(f"{name}.{split}", f"part-{part:05d}.parquet")
            write_shard(root / "shards" / place, rows, CROP, "raw")
            words = np.array([[[row.pose[1] / 100] * 66] * 3 for row in rows], np.float16)
            ids = [row.sample_id for row in rows]
            write_soft_labels(root / "labels" / LABELS.name / place, ids, words, "law")
        first += count
    return {name: root / name for name in ("shards", "labels", "teachers")}
