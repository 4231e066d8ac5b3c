"""From a detector's box to the network's: exact where it is exact, and on real faces nearer than without it."""

import dataclasses

import numpy as np
import pytest

from hpe_core.datasets.registry import fit_to, open_source
from hpe_core.detection.detector import FaceDetector
from hpe_core.detection.fit import DetectorFit, mean_fit
from hpe_core.geometry.crop import Box, overlap
from hpe_core.spec.data import DatasetSpec, DetectorSpec

BOX = Box(10.0, 20.0, 50.0, 100.0)
HEADS = DatasetSpec("synthetic", count=12, image_px=224, seed=3)


def test_nothing_known_moves_nothing_and_a_fit_is_undone_by_its_inverse():
    assert DetectorFit().of(BOX) == BOX
    fitted = DetectorFit(1.25, 0.8, 0.1).of(BOX)
    assert fitted == Box.around((30.0, 68.0), 50.0, 64.0)
    back = DetectorFit(1 / 1.25, 1 / 0.8, -0.1 / 0.8).of(fitted)
    np.testing.assert_allclose([back.x1, back.y1, back.x2, back.y2], [10, 20, 50, 100])


def test_a_detector_s_own_boxes_need_none_and_a_user_s_have_none_known():
    aflw = DatasetSpec("aflw2000", root="somewhere")
    assert fit_to(dataclasses.replace(aflw, detector=DetectorSpec("y.onnx"))) == DetectorFit()
    assert fit_to(dataclasses.replace(aflw, detector=DetectorSpec("y.onnx", fit=True))) == fit_to(aflw)
    assert fit_to(dataclasses.replace(aflw, boxes="boxes.json")) is None
    assert fit_to(DatasetSpec("manifest", root="faces.csv")) is None


def test_the_mean_is_weighted_and_leaves_out_what_is_unknown():
    small, large = DetectorFit(0.5, 0.5, 0.0), DetectorFit(2.0, 2.0, 0.2)
    even = mean_fit([(small, 7), (large, 7), (None, 99)])
    assert even is not None and (even.width, even.height, even.down) == pytest.approx((1.0, 1.0, 0.1))
    uneven = mean_fit([(small, 1), (large, 3)])
    assert uneven is not None and (uneven.width, uneven.height, uneven.down) == pytest.approx((2**0.5, 2**0.5, 0.15))
    alone = mean_fit([(small, 0), (large, 5)])
    assert alone is not None and (alone.width, alone.height, alone.down) == pytest.approx((2.0, 2.0, 0.2))
    assert mean_fit([(None, 5)]) is None and mean_fit([]) is None


@pytest.mark.parametrize("reader", ["synthetic", "aflw2000", "pointing04"])
def test_fitted_boxes_lie_nearer_to_the_reader_s_own(reader, real_data, yunet):
    """The median overlap of the faces that YuNet finds, and their median size."""
    spec = HEADS if reader == "synthetic" else DatasetSpec(reader, root=str(real_data / reader))
    source, find, fit = open_source(spec), FaceDetector(DetectorSpec(str(yunet))), fit_to(spec)
    rows = []
    for ref in sorted(source.refs())[:: 1 if reader != "pointing04" else 60][:12]:
        face, image = source.load(ref)
        found = max((one.box for one in find(image)), key=lambda box: overlap(box, face.box), default=None)
        if found is not None:
            fitted = fit.of(found)
            rows.append((overlap(found, face.box), overlap(fitted, face.box), fitted.width / face.box.width))
    before, after, size = np.median(rows, axis=0)
    assert len(rows) >= 8 and after > before + 0.05 and size == pytest.approx(1, abs=0.12)
