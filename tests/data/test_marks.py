"""Laws of what is said of landmarks: measured in pixels of the image, and read back as it was written."""

import numpy as np
import pytest

from hpe_core.data.marks import Marks, read_marks, write_marks
from hpe_core.geometry.landmarks import landmark_errors, recall_at_precision


def marks(faces: int, seed: int = 0) -> Marks:
    rng = np.random.default_rng(seed)
    true = np.concatenate([rng.uniform(-30, 30, (faces, 68, 2)), rng.integers(0, 2, (faces, 68, 1))], -1)
    said = np.concatenate([true[..., :2] + rng.normal(0, 2, (faces, 68, 2)), rng.uniform(0, 1, (faces, 68, 1))], -1)
    scales = rng.uniform(0.5, 4, (faces, 2))
    return Marks(*(part.astype(np.float32) for part in (said, true, scales)))


def test_scores_are_those_of_the_image_in_which_a_stretched_crop_is_not_square():
    given = marks(9)
    picked = np.arange(9) % 2 == 0
    said, true = (part[picked][..., :2] * given.scales_M2[picked][:, None] for part in given[:2])
    scores = given.scores(picked)
    assert scores["nme_box"] == pytest.approx(landmark_errors(said, true, "box").mean())
    assert scores["nme_eyes"] == pytest.approx(landmark_errors(said, true, "eyes").mean())
    hidden = recall_at_precision(1 - given.said_ML3[picked][..., 2], given.true_ML3[picked][..., 2])
    assert scores["hidden_recall"] == hidden
    given.true_ML3[:] = np.nan
    assert given.scores() == {}, "nothing is known, nothing is said"
    assert Marks.joined([marks(2), marks(3, 1)]).said_ML3.shape == (5, 68, 3)


def test_they_are_read_back_by_network_test_and_face(tmp_path):
    said = {("a", "x"): (["1", "2"], marks(2)), ("b", "y"): (["3"], marks(1, 7))}
    write_marks(tmp_path / "m.parquet", said)
    found = read_marks(tmp_path / "m.parquet")
    assert set(found) == set(said)
    for key, (ids, given) in said.items():
        assert list(found[key]) == ids
        np.testing.assert_array_equal(np.stack(list(found[key].values())), given.said_ML3)
    write_marks(tmp_path / "none.parquet", {})
    assert not (tmp_path / "none.parquet").exists() and read_marks(tmp_path / "none.parquet") == {}
