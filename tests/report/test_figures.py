"""Figures: what is drawn follows from the numbers."""

from hypothesis import given
from hypothesis import strategies as st

from workflows.engine.results import Role, Row, Trial
from workflows.report.figures import costs, pareto, pareto_front, risk_curves

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


def test_every_test_set_and_network_is_named_as_it_is_spelt():
    """Matplotlib leaves out what begins with an underscore, and takes what stands between dollars for a formula."""
    risk = risk_curves({"_held": [1.0, 2.0], "2$^$3": [2.0, 3.0]})
    cost = costs("a", [Row("a", name, Role.TEACHER, "", {"mae": 4.0}, 1e6, 2.0) for name in ("_net", "net")])
    for figure, names in ((risk, ["_held", "2$^$3"]), (cost, ["front", "_net", "net"])):
        texts = [*figure.axes[0].get_legend_handles_labels()[1]]
        assert [text.strip() for text in texts] == names
        figure.draw_without_rendering()
