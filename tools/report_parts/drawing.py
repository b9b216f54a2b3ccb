"""The look of every picture, and how one is kept: PNG and PDF for papers, CSV with its data, SVG to be put into a page."""
import csv
import io
import math
import os
import re

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito's colours, the two palest darkened: told apart with any colour vision, and by lightness in grey
BLUE, ORANGE, GREEN, PURPLE, SKY, OCHRE = "#0072b2", "#d55e00", "#009e73", "#b8558c", "#3d9fd6", "#b38600"
INK, GREY, GRID = "#1a1a1a", "#8a8a8a", "#e4e4e4"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, OCHRE, SKY, INK)
# what a colour becomes in a page: a CSS variable, which has a value for light and one for dark
VARIABLES = {BLUE: "--blue", ORANGE: "--orange", GREEN: "--green", PURPLE: "--purple", SKY: "--sky", OCHRE: "--ochre", INK: "--ink", GRID: "--line"}
WIDTH_INCHES = 4.8  # a page shows it 360 to 550 CSS pixels wide: letters stay between 9 and 16
DPI = 200
MAX_POINTS = 1500  # of one curve: more are not told apart, and make the page heavy


class Picture:
    """name: of its files. columns, rows: the data that it shows. words: a caption."""

    def __init__(self, name, heading, words, figure, columns, rows):
        self.name, self.heading, self.words, self.figure, self.columns, self.rows = name, heading, words, figure, columns, rows
        self.svg = None


def set_style():
    plt.rcParams.update({"font.size": 10, "axes.labelsize": 10, "axes.titlesize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9.5,
                         "font.family": "sans-serif", "axes.labelcolor": INK, "text.color": INK, "axes.facecolor": "none", "svg.fonttype": "path", "svg.hashsalt": "report",
                         "pdf.fonttype": 42, "figure.max_open_warning": 0})


# ---- axes ----

def panels(heights, columns=1, share="col", width=WIDTH_INCHES):
    """A figure of rows of the given heights in inches; the axes as a flat list, row by row."""
    figure, axes = plt.subplots(len(heights), columns, sharex=share, squeeze=False, figsize=(width, sum(heights) + 0.55),
                                gridspec_kw={"height_ratios": heights}, layout="constrained")
    axes = list(axes.flat)
    for one in axes:
        style_axes(one)
    return figure, axes


def style_axes(axes):
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(color=GREY, labelcolor=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(tick_text))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(tick_text))


def tick_text(value, _=None):
    text = f"{value:,.0f}" if abs(value) >= 1000 or value == 0 else f"{value:.4g}"
    return text.replace("-", "\u2212")


def count_axis(axes, values, label):
    """The lowest axes' x counts something: iterations, epochs."""
    low, high = float(np.min(values)), float(np.max(values))
    for one in axes:
        one.set_xlim(low, high if high > low else low + 1)
        one.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes[-1].set_xlabel(label)


def fit_y(axes, shown, floor=None, ceiling=None):
    shown = np.asarray(shown, dtype=float)
    shown = shown[np.isfinite(shown)]
    if not len(shown):
        return
    usual = float(np.median(np.abs(shown)))
    if np.abs(shown).max() > max(1000.0, 50 * usual):
        # a run that diverges: what came before must stay readable
        axes.set_yscale("symlog", linthresh=10.0 ** max(1, math.ceil(math.log10(usual + 1e-9))), linscale=2.0)
        axes.yaxis.set_major_formatter(FuncFormatter(power_text))
        axes.margins(y=0.08)
        return
    low, high = float(shown.min()), float(shown.max())
    margin = 0.08 * (high - low) or 0.05 * max(abs(high), 1e-3)
    low, high = low - margin, high + margin
    axes.set_ylim(low if floor is None else max(low, floor), high if ceiling is None else min(high, ceiling))


def power_text(value, _=None):
    if abs(value) < 100000:
        return tick_text(value)
    power = round(math.log10(abs(value)))
    return f"{'-' if value < 0 else ''}10^{{{power}}}".join("$$") if math.isclose(abs(value), 10.0 ** power) else f"{value:.0e}"


def place_legend(axes, columns, **options):
    axes.legend(**{"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncol": columns, "frameon": False, "handlelength": 1.6, "borderaxespad": 0.2,
                   "columnspacing": 1.4, **options})


# ---- curves ----

def smoothing_window(count):
    """Log lines in one smoothed value: a twentieth of the run, odd, so that it is centred."""
    return 2 * (count // 40) + 1


def smooth(iterations, values):
    """Moving median, at 600 places at most, then a mean over its neighbours: one wild batch leaves no step. One-sided at both ends."""
    count, half = len(values), smoothing_window(len(values)) // 2
    if half == 0:
        return iterations, values
    places = np.unique(np.linspace(0, count - 1, min(count, 600)).round().astype(int))
    medians = np.full(len(places), np.nan)
    for i, place in enumerate(places):
        near = values[max(0, place - half):place + half + 1]
        near = near[np.isfinite(near)]
        if len(near) > half // 2:  # else a gap, as the values have there
            medians[i] = np.median(near)
    reach = max(1, round(half * len(places) / count / 2))
    near = np.lib.stride_tricks.sliding_window_view(np.pad(medians, reach, constant_values=np.nan), 2 * reach + 1)
    known = np.isfinite(near)
    means = np.where(known, near, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return iterations[places], np.where(np.isfinite(medians), means, np.nan)


def thin(at, values):
    """Of a curve with many points the lowest and the highest in each of MAX_POINTS/2 stretches: what is seen stays the same."""
    if len(values) <= MAX_POINTS:
        return at, values
    keep = set()
    for stretch in np.array_split(np.arange(len(values)), MAX_POINTS // 2):
        known = stretch[np.isfinite(values[stretch])]
        keep.update([known[values[known].argmin()], known[values[known].argmax()]] if len(known) else [stretch[0]])
    keep = sorted(keep)
    return at[keep], values[keep]


def draw_curve(axes, iterations, values, color, label=None):
    """The raw values pale, their smoothed course strong. Returns the values that the axis must show."""
    at, smoothed = smooth(iterations, values)
    raw = values[np.isfinite(values)]
    if len(at) and at is not iterations:
        axes.plot(*thin(iterations, values), color=color, alpha=0.25, linewidth=0.7)
    # a point between two gaps has no line to be seen by
    few = len(raw) < 3
    axes.plot(at, smoothed, color=color, linewidth=1.8, label=label, marker="o" if few else None, markersize=5, clip_on=not few)
    shown = smoothed[np.isfinite(smoothed)]
    # single raw spikes may leave the frame, the smoothed course may not
    return np.concatenate([shown, np.percentile(raw, [1, 99])]) if len(raw) else shown


# ---- keeping ----

def replace_file(path, content):
    """A reader finds the old file or the new one, never a part."""
    with open(path + ".tmp", "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8"))
    os.replace(path + ".tmp", path)


def csv_text(columns, rows):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if isinstance(v, float) and math.isnan(v) else f"{v:.10g}" if isinstance(v, float) else v for v in row] for row in rows)
    return out.getvalue()


def keep(picture, folder):
    """Writes NAME.png, NAME.pdf, NAME.csv and sets picture.svg; the figure is closed."""
    picture.figure.align_ylabels()
    picture.figure.draw_without_rendering()
    picture.figure.set_layout_engine("none")  # what is laid out once need not be for each file
    for kind, options in (("png", {"dpi": DPI, "facecolor": "white", "metadata": {"Software": None}}),
                          ("pdf", {"facecolor": "white", "metadata": {"CreationDate": None}}),
                          ("svg", {"facecolor": "none", "metadata": {"Date": None, "Creator": None, "Format": None, "Type": None}})):
        out = io.BytesIO()
        picture.figure.savefig(out, format=kind, **options)
        if kind == "svg":
            picture.svg = page_svg(out.getvalue().decode("utf-8"), picture.name)
        else:
            replace_file(os.path.join(folder, f"{picture.name}.{kind}"), out.getvalue())
    replace_file(os.path.join(folder, f"{picture.name}.csv"), csv_text(picture.columns, picture.rows))
    plt.close(picture.figure)


def page_svg(text, name):
    """The <svg> element alone: no size of its own, ids that no other picture of the page has, colours as the page's variables."""
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)[1]
    rest = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", rest)
    for color, variable in VARIABLES.items():
        rest = rest.replace(color, f"var({variable})")
    return f'<svg viewBox="{box}" role="img" aria-label="ARIA_LABEL">{rest}'
