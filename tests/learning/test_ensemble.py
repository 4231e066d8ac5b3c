"""The ensembles against brute force with real networks."""

import copy
import dataclasses
import itertools
import json
from functools import cache

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hpe_core.data.batch import PoseBatch
from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.crop import offset_grid, window
from hpe_core.learning.ensemble import (
    OnlineTeachers,
    ensemble_probs,
    folded,
    offset_table,
    window_answers,
)
from hpe_core.networks.models import PoseNet
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import LabelSet
from tests.faces import CROP, face_row

SIZE = CROP.size
NAMES = ("resnet", "byobnet")


@pytest.fixture(scope="module")
def nets():
    made = {}
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        net = PoseNet(NetSpec(backbone=f"test_{name}"), SIZE).eval()
        for head in net.heads:
            torch.nn.init.normal_(head.weight, std=0.5)  # outputs that differ from window to window
        made[name] = net
    return made


@pytest.fixture(scope="module")
def crops():
    return torch.from_numpy(np.stack([face_row(i).crop.pixels for i in range(5)]))


def test_one_pass_over_many_sets_equals_brute_force(nets, crops):
    sets = [LabelSet(names, k, d) for names in (NAMES, NAMES[:1], NAMES[1:]) for k, d in ((0, 1), (4, 4), (6, 3))]
    sets += [labels._replace(mirrored=True) for labels in sets]
    means = ensemble_probs(nets, crops, SIZE, sets)
    assert set(means) == set(sets)

    @cache
    def said(name, at, mirrored):
        view = window(crops.flip(2) if mirrored else crops, SIZE, *at)
        with torch.inference_mode():
            answer = nets[name].predict(view)
        return nets[name].form.mirror(answer) if mirrored else answer

    for labels in sets:
        ways = (False, True) if labels.mirrored else (False,)
        asked = itertools.product(labels.teachers, offset_grid(*labels.offsets), ways)
        each = [said(*one) for one in asked]
        assert torch.allclose(means[labels], torch.stack(each).mean(0), atol=1e-6)
        assert torch.allclose(means[labels].sum(-1), torch.ones(5, 3), atol=1e-5)


def test_windows_that_go_through_a_network_together_say_what_each_says(nets, crops):
    """To the rounding of float32 sums, far below that of the fp16 in which labels are stored: 2^-11 of a value."""
    sets = [LabelSet(NAMES, 4, 4, True), LabelSet(NAMES[:1], 6, 3), LabelSet(NAMES[1:], 4, 2)]
    logs = nets[NAMES[0]].form.labels
    each, *folds = (ensemble_probs(nets, crops, SIZE, sets, fold=size) for size in (1, 7, 1000))
    for together, labels in itertools.product(folds, sets):
        gap = (logs(each[labels]) - logs(together[labels])).abs()
        assert (gap <= logs(each[labels]).abs() * 2**-11).all()
        torch.testing.assert_close(each[labels], together[labels], rtol=1e-4, atol=1e-7)
    alone, *folded = (window_answers(nets["resnet"], crops, SIZE, 2, fold=size) for size in (1, 7, 1000))
    np.testing.assert_allclose(folded, [alone, alone], atol=1e-3)


def test_a_gpu_is_given_windows_together_and_a_cpu_one_by_one():
    for rows, windows in ((512, 1), (300, 1), (128, 4), (7, 73), (9999, 1)):
        crops = torch.empty(rows, 1, device="meta")
        assert folded(crops) == 1
        with FakeTensorMode():
            assert folded(torch.empty(rows, 1, device="cuda")) == windows


def test_a_network_sees_a_window_once_and_only_if_a_set_wants_it(nets, crops, monkeypatch):
    seen = {name: 0 for name in NAMES}
    for name, net in nets.items():

        def counting(view, name=name, net=net):
            seen[name] += 1
            return PoseNet.predict(net, view)

        monkeypatch.setattr(net, "predict", counting)
    ensemble_probs(nets, crops, SIZE, [LabelSet(NAMES, 4, 4), LabelSet(NAMES[:1], 4, 2), LabelSet(NAMES[:1], 0, 1)])
    assert seen == {"resnet": 25, "byobnet": 9}
    ensemble_probs(nets, crops, SIZE, [LabelSet(NAMES, 4, 4, True), LabelSet(NAMES[:1], 4, 4)])
    assert seen == {"resnet": 25 + 18, "byobnet": 9 + 18}


def test_mirrored_labels_of_a_mirrored_face_are_mirrored(nets, crops):
    labels = LabelSet(NAMES, 4, 2, True)
    one, other = (ensemble_probs(nets, images, SIZE, [labels])[labels] for images in (crops, crops.flip(2)))
    assert torch.allclose(nets[NAMES[0]].form.mirror(one), other, atol=1e-6)


def test_the_table_of_every_K_and_d_equals_brute_force(nets, crops):
    net = nets["resnet"]
    table = offset_table(window_answers(net, crops, SIZE, 4), net.form)
    assert set(table) == {(k, d) for k in range(5) for d in range(1, 5)}
    for pair, angles in table.items():
        labels = LabelSet(("resnet",), *pair)
        direct = net.form.decode(ensemble_probs(nets, crops, SIZE, [labels])[labels]).numpy()
        assert np.abs(direct - angles).max() < 1e-4


def test_the_angles_of_a_window_lie_at_its_row_and_column(nets, crops):
    angles = window_answers(nets["resnet"], crops, SIZE, 2)
    assert angles.shape == (5, 5, 5, 3)
    with torch.inference_mode():
        for dx, dy in ((2, -1), (-1, 2), (0, 1)):
            direct = nets["resnet"].angles(window(crops, SIZE, dx, dy)).numpy()
            assert np.abs(angles[dy + 2, dx + 2] - direct).max() < 1e-4


def test_windows_beyond_the_margin_are_refused(nets, crops):
    with pytest.raises(ValueError, match="margin of 6"):
        ensemble_probs(nets, crops, SIZE, [LabelSet(NAMES, 7, 7)])


def test_online_labels_of_an_unchanged_view_are_the_stored_ones(nets, crops):
    labels = LabelSet(NAMES, 4, 2)
    teachers = OnlineTeachers(nets, SIZE, labels)
    view = window(crops, teachers.view_size)  # what Augment hands over when it draws nothing
    batch = PoseBatch(view, torch.zeros(5, 3), torch.ones(5, 2))
    out = teachers(batch)
    assert torch.equal(out.images_BHWC, window(crops, SIZE))
    stored = teachers.form.labels(ensemble_probs(nets, crops, SIZE, [labels])[labels])
    assert torch.allclose(out.soft_B3N, stored, atol=1e-5) and not out.soft_B3N.is_inference()
    mirrored = teachers(dataclasses.replace(batch, images_BHWC=view.flip(2)))
    assert not torch.allclose(mirrored.soft_B3N, stored, atol=1e-2), "the teachers are asked again for another view"


def test_log_labels_are_the_probabilities_and_never_minus_infinity():
    """Half precision keeps them to a thousandth, and a bin that no teacher names stays a number."""
    probs = torch.tensor([[[0.0, 1e-12, 1e-3, 0.25, 0.749]]])
    stored = AngleBins.covering(99, 3).labels(probs).half().float()
    assert stored.isfinite().all() and stored.min() < -16
    torch.testing.assert_close(stored.exp(), probs, rtol=5e-3, atol=2e-7)


def test_online_teachers_are_those_of_their_set_and_do_not_train(nets, crops):
    """Networks that come in train mode: a face's labels must not depend on the faces beside it, nor on other nets."""
    labels = LabelSet(NAMES[1:], 2, 2)
    teachers = OnlineTeachers({name: copy.deepcopy(net).train() for name, net in nets.items()}, SIZE, labels)
    assert teachers.view_size == SIZE + 4
    batch = PoseBatch(window(crops, SIZE + 4), torch.arange(15.0).view(5, 3), torch.ones(5, 2))
    together = teachers(batch)
    alone = torch.cat([teachers(batch.take(torch.tensor([i]))).soft_B3N for i in range(5)])
    torch.testing.assert_close(together.soft_B3N, alone, rtol=1e-4, atol=1e-4)
    stored = ensemble_probs({NAMES[1]: nets[NAMES[1]]}, crops, SIZE, [labels])[labels]
    torch.testing.assert_close(together.soft_B3N.exp(), stored, rtol=1e-3, atol=1e-6)
    assert torch.equal(together.angles_B3, batch.angles_B3)


def test_memory_is_flat_in_the_number_of_windows(nets, tmp_path):
    """The most that torch held at a time, read off its profiler: 81 windows take what nine take."""
    crops = torch.zeros(8, SIZE + 32, SIZE + 32, 3, dtype=torch.uint8)

    def peak(labels: LabelSet, fold: int = 1) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
            ensemble_probs({NAMES[0]: nets[NAMES[0]]}, crops, SIZE, [labels], fold)
        trace = tmp_path / "trace.json"
        seen.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
        moments = [event["args"] for event in events if event.get("name") == "[memory]"]
        before = moments[0]["Total Allocated"] - moments[0]["Bytes"]
        return max(moment["Total Allocated"] for moment in moments) - before

    # One window needs no second sum beside the first; from then on nothing is added.
    few, many = peak(LabelSet(NAMES[:1], 16, 16)), peak(LabelSet(NAMES[:1], 16, 4))
    copies = 81 * 8 * SIZE * SIZE * 3
    assert few <= many < 1.05 * few and many < copies
    few, many = peak(LabelSet(NAMES[:1], 16, 16), 4), peak(LabelSet(NAMES[:1], 16, 4), 4)
    assert few <= many < 1.05 * few, "nor where four go through the network together"
