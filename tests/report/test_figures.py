"""Figures: what is drawn follows from the numbers."""

from hypothesis import given
from hypothesis import strategies as st

from workflows.engine.results import Trial
from workflows.report.figures import pareto, pareto_front

POINTS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=30)


@given(POINTS)
def test_the_front_is_what_nobody_beats(points):
    front = pareto_front(points)
    for point in points:
        beaten = any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in points)
        assert (point in front) == (not beaten)
    assert front == sorted(front) and [b for _, b in front] == sorted((b for _, b in front), reverse=True)


def test_every_backbone_is_named_in_the_picture():
    costs = {"small": 1.0, "large": 2.0}
    trials = [Trial(name, {"net.backbone": name}, False, 9 - ms, 1, 1.0, 1e6, ms) for name, ms in costs.items()]
    said = [text.get_text() for text in pareto(trials).legends[0].get_texts()]
    assert said == ["small", "large", "front"]
