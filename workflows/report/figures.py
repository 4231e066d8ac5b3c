"""The report's pictures: charts as matplotlib figures, faces as contact sheets. Drawing only; no file is read.

One quiet style for all: dark text on white, a colour and a line style for each network (told apart in black and white,
too), and letters that stay readable when a chart is as narrow as a telephone. Figures are made without pyplot, which
keeps global state and would pick a display.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

from hpe_core.geometry.crop import Image
from hpe_core.geometry.draw import contact_sheet, draw_axes, draw_landmarks, enlarged
from hpe_core.geometry.rotation import ANGLE_NAMES, euler_error
from hpe_core.learning.metrics import in_front
from workflows.engine.results import Cell, Epoch, Role, Row, Trial

Floats = NDArray[np.floating]

STYLE: dict[str, Any] = {
    "font.size": 10,
    "text.parse_math": False,  # a test set may be called 2$ or 3$
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}
FIXED: dict[str, tuple[str, Any, str]] = {  # network -> colour, line style, name in legends
    Role.DISTILLED: ("#0b5fa5", "-", "student, distilled"),
    Role.HARD: ("#c8500b", "--", "student, hard labels"),
    Role.TEACHERS: ("#333333", "-.", "teachers' ensemble"),
    Role.OFFSETS: ("#2e7d4f", ":", "offset ensemble"),
    Role.COMBINED: ("#7a5195", (0, (1, 1)), "teachers over offsets"),
}
OTHERS = ("#8c6bb1", "#7a8b99", "#b58900", "#cc6699", "#5b8c85", "#99734d")
SHOWN = (Role.DISTILLED, Role.HARD, Role.TEACHERS)
SIZE = (4.8, 3.1)  # inches
TILE = 144  # pixels of one face on a sheet
FEWEST = 5  # faces below which a bin's mean is not drawn


@dataclass(frozen=True, eq=False)
class Predicted:
    """One network's predictions on one test set, in the order of the sample ids; (M, 3) degrees."""

    sample_ids: list[str]
    people: list[str]  # whom each face shows
    angles: Floats
    truth: Floats

    @property
    def errors(self) -> NDArray[np.float64]:
        """(M,) mean of the three circular angle errors of each face."""
        return np.asarray(euler_error(self.angles, self.truth).mean(1))

    @property
    def ahead(self) -> "Predicted":
        """The faces of which the table has the MAE: Euler angles of heads from behind are compared nowhere."""
        rows = np.flatnonzero(in_front(self.truth))
        names, people = ([own[row] for row in rows] for own in (self.sample_ids, self.people))
        return Predicted(names, people, self.angles[rows], self.truth[rows])


def legend_name(name: str) -> str:
    """Matplotlib shows no label that begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def style_of(name: str, others: Sequence[str] = ()) -> tuple[str, Any, str]:
    """(colour, line style, label) of a network; teachers take theirs by their place in `others`."""
    if name in FIXED:
        return FIXED[name]
    place = list(others).index(name) if name in others else 0
    return OTHERS[place % len(OTHERS)], (0, (6, 2, 1 + place % 3, 2)), legend_name(name)


def _axes(title: str, x: str, y: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", weight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


@rc_context(STYLE)
def error_by_angle(test: str, networks: Mapping[str, Predicted], angle: int) -> Figure:
    """Mean error in bins of the true pitch, yaw or roll (0, 1, 2), a line a network; the bars are numbers of faces."""
    name_of, width = ANGLE_NAMES[angle], 15.0  # degrees of a bin
    title, label_x = f"Error against {name_of}, {test}", f"true {name_of}, degrees"
    figure, axes = _axes(title, label_x, "mean absolute error, degrees")
    truth = next(iter(networks.values())).truth[:, angle]
    reach = max(1, int(np.ceil((np.abs(truth).max() - width / 2) / width)))
    edges = (np.arange(-reach, reach + 2) - 0.5) * width
    centers = (edges[:-1] + edges[1:]) / 2
    counts = np.histogram(truth, edges)[0]
    bars = axes.twinx()
    bars.bar(centers, counts, width * 0.92, color="#ececec", zorder=0)
    bars.set_ylim(0, max(counts.max(), 1) * 2.6)
    bars.set_yticks([0, int(counts.max())])
    bars.tick_params(colors="#777777", labelsize=8)
    bars.set_ylabel("faces", color="#777777", fontsize=8, loc="bottom")
    bars.grid(False)
    axes.set_zorder(bars.get_zorder() + 1)
    axes.patch.set_visible(False)
    for name, predicted in networks.items():
        color, line, label = style_of(name)
        which = np.digitize(predicted.truth[:, angle], edges) - 1
        means = [predicted.errors[which == i].mean() if counts[i] >= FEWEST else np.nan for i in range(len(centers))]
        axes.plot(centers, means, color=color, linestyle=line, marker="o", markersize=3.5, label=label)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper center", ncols=1)
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top * 1.5)  # room for the legend above the lines
    return figure


@rc_context(STYLE)
def error_cdf(test: str, networks: Mapping[str, Predicted]) -> Figure:
    """Share of the faces whose error is below x degrees."""
    figure, axes = _axes(f"Share of faces below an error, {test}", "mean error of a face, degrees", "faces, %")
    far = max(float(np.quantile(predicted.errors, 0.98)) for predicted in networks.values())
    for name, predicted in networks.items():
        color, line, label = style_of(name)
        ordered = np.sort(predicted.errors)
        share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
        axes.step(np.r_[0, ordered], np.r_[0, share], where="post", color=color, linestyle=line, label=label)
    axes.set_xlim(0, far)
    axes.set_ylim(0, 100)
    axes.legend(loc="lower right")
    return figure


@rc_context(STYLE)
def risk_curves(risk: Mapping[str, Sequence[float]]) -> Figure:
    """MAE of the surest share of the faces of each test set."""
    figure, axes = _axes("Error of the surest faces", "surest share of the faces, %", "MAE, degrees")
    for test, errors in risk.items():
        share = 100 * np.arange(1, len(errors) + 1) / len(errors)
        axes.plot(share, errors, label=legend_name(test))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, None)
    axes.legend(loc="upper left")
    return figure


@rc_context(STYLE)
def heat_map(test: str, base: str, cells: Sequence[Cell]) -> Figure:
    """MAE of the offset ensemble by K (reach) and d (step); K < d, the single window again, stays empty."""
    title = f"Offset ensemble of {base}, {test}"
    figure, axes = _axes(title, "step d, network pixels", "reach K, network pixels")
    ks, ds = sorted({cell.K for cell in cells}), sorted({cell.d for cell in cells})
    table = np.full((len(ks), len(ds)), np.nan)
    for cell in cells:
        if cell.d <= cell.K or (cell.K == 0 and cell.d == min(ds)):
            table[ks.index(cell.K), ds.index(cell.d)] = cell.mae
    shown = axes.imshow(table, cmap="YlGnBu_r", aspect="auto", origin="lower")
    axes.set_facecolor("#f4f4f4")
    axes.grid(False)
    axes.set_xticks(range(len(ds)), [str(d) for d in ds])
    axes.set_yticks(range(len(ks)), [f"{k}" if k else "0 (off)" for k in ks])
    if table.size <= 80:
        # White letters on the dark half of the scale, dark ones on the light half.
        middle = (np.nanmin(table) + np.nanmax(table)) / 2
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                ink = "white" if value < middle else "#1a1a1a"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    row, column = np.unravel_index(np.nanargmin(table), table.shape)
    axes.plot(column, row, "s", markersize=26 if table.size <= 80 else 9, mfc="none", mec="#c8500b", mew=1.8)
    bar = figure.colorbar(shown, ax=axes)
    bar.set_label("MAE, degrees")
    bar.outline.set_visible(False)
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, error) points that no other point beats in both, by rising cost."""
    front, best = [], float("inf")
    for cost, error in sorted(points):
        if error < best:
            front.append((cost, error))
            best = error
    return front


@rc_context(STYLE)
def pareto(trials: Sequence[Trial]) -> Figure:
    """Validation error of the trials against the CPU time of their networks, and the front of the undominated."""
    figure, axes = _axes("Error against latency", "one face on one CPU thread, ms", "validation error, degrees")
    points = [(trial.latency_ms, trial.best_val_error) for trial in trials]
    names = [str(trial.changes.get("net.backbone", "student")) for trial in trials]
    for place, name in enumerate(dict.fromkeys(names)):
        mine = [point for point, other in zip(points, names, strict=True) if other == name]
        color, (costs, errors) = OTHERS[place % len(OTHERS)], zip(*mine, strict=True)
        axes.scatter(costs, errors, s=26, color=color, label=name, zorder=3)
    front = zip(*pareto_front(points), strict=True)
    axes.plot(*front, color="#c8500b", drawstyle="steps-post", label="front", zorder=2)
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@rc_context(STYLE)
def costs(test: str, rows: Sequence[Row]) -> Figure:
    """Test error of every network and ensemble against the CPU time of one face, and the front of the undominated."""
    size = (SIZE[0], SIZE[1] + 0.1 * len(rows))
    figure, axes = _axes(f"Error against latency, {test}", "one face on one CPU thread, ms", "MAE, degrees", size)
    points = [(row.latency_ms, row.mae) for row in rows]
    others = [row.name for row in rows if row.name not in FIXED]
    front = zip(*pareto_front(points), strict=True)
    axes.plot(*front, color="#c8500b", drawstyle="steps-post", label="front", zorder=2)
    for place, (row, (cost, error)) in enumerate(zip(rows, points, strict=True)):
        color, _, label = style_of(row.name, others)
        marker = "osD^vPX<>*"[place % 10]
        axes.plot(cost, error, marker, color=color, markersize=6, label=label, zorder=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@rc_context(STYLE)
def training_curves(histories: Mapping[str, Sequence[Epoch]], key: str, title: str, y: str) -> Figure:
    """One line a network over its epochs; the best epoch of a validation figure is marked."""
    figure, axes = _axes(title, "epoch", y, (SIZE[0], SIZE[1] + 0.12 * len(histories)))
    others = [name for name in histories if name not in FIXED]
    for name, history in histories.items():
        rows = [row for row in history if key in row]
        if not rows:
            continue
        color, line, label = style_of(name, others)
        epochs, values = [row["epoch"] for row in rows], [row[key] for row in rows]
        marker = "o" if len(rows) == 1 else ""
        axes.plot(epochs, values, color=color, linestyle=line, marker=marker, label=label)
        if key.startswith("val/"):
            best = int(np.argmin(values))
            axes.plot(epochs[best], values[best], "o", color=color, markersize=5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if all(value > 0 for line in axes.lines for value in np.asarray(line.get_ydata(), float)):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        steps = (1.0, 2.0, 3.0, 5.0) if high > 5 * low else tuple(range(1, 10))  # three ticks at least
        axes.yaxis.set_major_locator(LogLocator(subs=steps))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=2)  # curves fall, rise or lie flat: no corner is free
    return figure


@rc_context(STYLE)
def angle_histograms(name: str, poses_M3: Floats) -> Figure:
    """How many faces lie in each bin of pitch, yaw and roll; what lies beyond +-100 is counted in the title."""
    figure = Figure(figsize=(2 * SIZE[0], 0.8 * SIZE[1]), dpi=160, layout="constrained")
    edges = np.arange(-100.0, 110.0, 10.0)
    for axes, angle, values in zip(figure.subplots(1, 3, sharey=True), ANGLE_NAMES, poses_M3.T, strict=True):
        beyond = int((np.abs(values) > edges[-1]).sum())
        axes.set_title(angle + (f" ({beyond:,} beyond)" if beyond else ""), loc="left", weight="bold")
        axes.hist(values, edges, color="#0b5fa5")
        axes.set_xlabel("degrees")
    figure.axes[0].set_ylabel(f"faces of {name}")
    figure.axes[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


# ---------------------------------------------------------------- faces


def sample_sheet(windows: Image, poses_M3: Floats, columns: int = 4) -> Image:
    """Faces as the network sees them, with the axes of their labels."""
    tiles = [draw_axes(enlarged(face, TILE), pose) for face, pose in zip(windows, poses_M3, strict=True)]
    return contact_sheet(tiles, columns, [angles_text(pose) for pose in poses_M3])


def landmark_sheet(faces: Sequence[Image], marks: Sequence[ArrayLike]) -> Image:
    """Faces side by side with their landmarks, (68, 3) each, in pixels of the face."""
    tiles = []
    for face, points in zip(faces, marks, strict=True):
        scale = TILE / face.shape[0]
        tiles.append(draw_landmarks(enlarged(face, TILE), np.asarray(points) * [scale, scale, 1]))
    return contact_sheet(tiles, columns=len(tiles) // 2 or 1)


def with_axes(face: Image, poses: Sequence[Floats]) -> Image:
    """One face side by side, with the axes of each pose."""
    large = enlarged(face, TILE)
    return np.concatenate([draw_axes(large, pose) for pose in poses], axis=1)


def angles_text(pose: Floats) -> str:
    """'+12 -40 +3': pitch, yaw, roll in whole degrees."""
    return " ".join(f"{round(float(angle)):+d}" for angle in pose)
