"""Several runs side by side. Runs whose config differs in the seed alone are one group: mean and standard deviation over its n runs (divisor n - 1)."""
import collections
import html
import math
import os
import re

import matplotlib.pyplot as plt
import numpy as np

from . import page
from .drawing import COLORS, GREY, VARIABLES, WIDTH_INCHES, Picture, count_axis, csv_text, fit_y, panels, place_legend, smooth, style_axes, thin
from .pictures import by_key, course, grid_of, sheet_title, shorten, unit_square
from .reading import NORMS, figures_of, flatten, has_data, held_out, is_authors, number, plural, series

LINE_STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


class Group:
    """label: for people; runs: of one config, each with a seed of its own."""

    def __init__(self, runs):
        self.runs, self.label, self.color, self.style = runs, "", GREY, "-"

    @property
    def text(self):
        return shorten(self.label, 30) + (f" (n = {len(self.runs)})" if len(self.runs) > 1 else "")


def run_names(runs):
    """Each run's folder name; where two have the same, with as many of the folders above as tell them apart."""
    paths = [os.path.realpath(r.folder).split(os.sep) for r in runs]
    names = []
    for path in paths:
        depth = 1
        while depth < len(path) and sum(p[-depth:] == path[-depth:] for p in paths) > 1:
            depth += 1
        names.append("/".join(path[-depth:]))
    return names


def alike(a, b):
    """Whether two configs differ in the seed alone. The seed that chooses images follows the seed where nobody sets it."""
    rest = [{k: v for k, v in c.items() if k not in ("seed", "split_seed")} for c in (a, b)]
    if not rest[0] or rest[0] != rest[1]:  # without a config nothing says that two runs are alike
        return False
    chooses = a.get("n_valid") or a.get("labels_per_class")
    return not chooses or a.get("split_seed") == b.get("split_seed") or all(c.get("split_seed") == c.get("seed") for c in (a, b))


def group_runs(runs, names, words):
    """In the order of the first run of each. A repeat of a seed is no further draw: it stands by itself."""
    found = []
    for run, name in zip(runs, names):
        run.name = name
        members = next((m for m in found if all(alike(run.config, other.config) for other in m)), [])
        same = next((m for m in members if m.config.get("seed") == run.config.get("seed")), None)
        if not members or same is not None:
            found.append([run])
        else:
            members.append(run)
        if same is not None:
            words.append(f"{name} has the settings and the seed of {same.name}: it stands by itself and counts in no mean.")
    groups = [Group(members) for members in found]
    taken = set()
    for i, group in enumerate(groups):
        label = common_name([r.name for r in group.runs])
        group.label = label if label not in taken else group.runs[0].name
        taken.add(group.label)
        group.color, group.style = COLORS[i % len(COLORS)], LINE_STYLES[i // len(COLORS) % len(LINE_STYLES)]
    return groups


def common_name(names):
    """sada-jem-1, sada-jem-2: sada-jem."""
    common = re.sub(r"[-_. ]*(seed)?[-_. ]*$", "", os.path.commonprefix(names)) if len(names) > 1 else names[0]
    return common or names[0]


# ---- figures ----

def choose_checkpoint(runs):
    """The name that most of the runs have an evaluation of; of equals last, then best."""
    counts = collections.Counter(e.name for r in runs for e in r.evaluations)
    order = {"last": 2, "best": 1}
    return max(counts, key=lambda n: (counts[n], order.get(n, 0), n)) if counts else None


def evaluation_of(run, checkpoint):
    return next((e for e in run.evaluations if e.name == checkpoint), None)


def different_images(runs, checkpoint):
    """A word where evaluations were made of other images or weights: their figures stand side by side all the same."""
    of_what = {}
    for run in runs:
        evaluation = evaluation_of(run, checkpoint)
        if evaluation:
            what = ", ".join(f"{k} {evaluation.figures[k]}" for k in ("data", "split", "images", "weights") if k in evaluation.figures)
            of_what.setdefault(what, []).append(run.name)
    return ["Mind that the evaluations differ: " + "; ".join(f"{', '.join(names)}: {what or 'not said'}" for what, names in of_what.items()) + "."] * (len(of_what) > 1)


def run_figures(run, checkpoint):
    """{key: (label, value, kind)} of the evaluation, and of training what tells runs apart."""
    evaluation = evaluation_of(run, checkpoint)
    found = {}
    for key, label, value, kind in figures_of(evaluation) if evaluation else []:
        # figures of different protocols must not share a row
        authors = is_authors(evaluation, key)
        found[key + ".authors" * authors] = (label + " (authors' protocol)" * authors, value, kind)

    def add(key, label, value, kind="plain"):
        if value is not None and math.isfinite(value):
            found[key] = (label, float(value), kind)

    points = held_out(run.metrics)
    if points is not None:
        add(f"training.{points[0]}_accuracy", f"{points[0]} accuracy at the end of training", points[2][-1], "percent")
        add(f"training.best_{points[0]}_accuracy", f"best {points[0]} accuracy in training", points[2].max(), "percent")
    _, _, distances = course(run.metrics, "frechet_distance")
    if len(distances):
        add("training.frechet_distance", "Fr\u00e9chet distance at the end of training", distances[-1])
    real, sampled = page.last_mean(run.metrics, "f_pos"), page.last_mean(run.metrics, "f_neg")
    add("training.energy_gap", "E(sampled) \u2212 E(real), end of training", real - sampled)
    if run.metrics:
        add("training.iterations", "iterations", number(run.metrics[-1]["iteration"]), "count")
        add("training.minutes", "training time (minutes)", number(run.metrics[-1].get("time_s")) / 60)
    return found


class Figures:
    """rows: [(key, label, kind)]; of[key][i]: the values of group i's runs that have it."""

    def __init__(self, groups, checkpoint):
        self.rows, self.of = [], {}
        single = {id(r): run_figures(r, checkpoint) for g in groups for r in g.runs}
        self.single = single
        for figures in single.values():
            for key, (label, _, kind) in figures.items():
                if key not in self.of:
                    self.rows.append((key, label, kind))
                    self.of[key] = [[single[id(r)][key][1] for r in g.runs if key in single[id(r)]] for g in groups]
        self.rows.sort(key=lambda row: row[0].startswith("training."))  # stable: what was measured last stands first
        # what a table for people holds; the rest is in the CSV files
        self.main = [row for row in self.rows if not row[0].startswith("ood.") or ".auroc_" in row[0]]


def mean_and_deviation(values):
    """Mean, standard deviation of the sample; NaN where there are too few."""
    values = np.asarray(values, dtype=float)
    return (float(values.mean()) if len(values) else math.nan), (float(values.std(ddof=1)) if len(values) > 1 else math.nan)


def cell(values, kind, of_runs, plus_minus=" \u00b1 ", nothing="\u2013"):
    mean, deviation = mean_and_deviation(values)
    if not len(values):
        return nothing
    scale = 100 if kind == "percent" else 1
    digits = 2 if kind == "percent" else 0 if kind == "count" else decimals(np.nanmax([abs(mean), deviation]))
    text = f"{scale * mean:,.{digits}f}"
    if math.isfinite(deviation):
        text += f"{plus_minus}{scale * deviation:,.{digits}f}"
    if of_runs > 1 and len(values) != of_runs:
        text += f" (n = {len(values)})"
    return text.replace("-", "\u2212")


def decimals(value):
    """So that four digits are shown, none behind the point from 1000 on."""
    return 0 if value >= 1000 or value == 0 else min(6, max(0, 3 - math.floor(math.log10(value))))


def latex(text):
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", "/"))
    for mark, command in (("\u2212", "$-$"), ("\u03b5", r"$\varepsilon$"), ("\u221e", r"$_\infty$"), ("\u00e9", r"\'e"), ("\u2013", "--"), ("~", r"\textasciitilde{}"),
                          ("^", r"\textasciicircum{}"), ("\u2026", r"\ldots{}")):
        text = text.replace(mark, command)
    return text


def latex_table(groups, figures):
    lines = [r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{l{'r' * len(groups)}}}", r"\toprule", " & ".join(["", *(latex(g.text) for g in groups)]) + r" \\", r"\midrule"]
    previous = None
    for key, label, kind in figures.main:
        part = key.startswith("training.")
        if previous is not None and part != previous:
            lines.append(r"\midrule")
        previous = part
        unit = " (%)" if kind == "percent" else ""
        cells = [latex(cell(v, kind, len(g.runs), plus_minus="PLUSMINUS", nothing="--")).replace("PLUSMINUS", r" $\pm$ ") for g, v in zip(groups, figures.of[key])]
        lines.append(" & ".join([latex(label + unit), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def table_files(groups, figures, settings):
    """{file: text}: figures.csv (a run a row), table.csv and table.tex (as the page shows them), settings.csv."""
    runs = [(g, r) for g in groups for r in g.runs]
    keys = [key for key, _, _ in figures.rows]
    single = [[r.name, g.label, r.config.get("seed", ""), *(figures.single[id(r)].get(k, ("", math.nan))[1] for k in keys)] for g, r in runs]
    shown = []
    for key, label, kind in figures.rows:
        row = [key, label]
        for values in figures.of[key]:
            row += [*mean_and_deviation(values), len(values)]
        shown.append(row)
    head = ["figure", "label"] + [f"{g.label} {what}" for g in groups for what in ("mean", "deviation", "n")]
    return {"figures.csv": csv_text(["run", "group", "seed", *keys], single), "table.csv": csv_text(head, shown), "table.tex": latex_table(groups, figures),
            "settings.csv": csv_text(["setting", *(g.label for g in groups)], settings)}


def differing_settings(groups):
    """[(setting, value of each group)] of those that are not the same everywhere; of seeds the list."""
    per_group = []
    for group in groups:
        settings = dict(flatten(group.runs[0].config))
        if "seed" in settings:
            settings["seed"] = ", ".join(str(r.config.get("seed", "none")) for r in group.runs)
        per_group.append(settings)
    keys = list(dict.fromkeys(k for s in per_group for k in s))
    rows = [(k, *(s.get(k, "\u2013") for s in per_group)) for k in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


# ---- pictures ----

def on_common_places(curves):
    """[(places, values)] of several runs -> places that all of them have come to, values [runs, places]."""
    curves = [(a[np.isfinite(v)], v[np.isfinite(v)]) for a, v in curves]
    curves = [c for c in curves if len(c[0])]
    if not curves:
        return np.array([]), np.empty((0, 0))
    low, high = max(a[0] for a, _ in curves), min(a[-1] for a, _ in curves)
    places = curves[0][0]
    places = places[(places >= low) & (places <= high)]
    return places, np.array([np.interp(places, a, v) for a, v in curves])


def draw_group(axes, group, curves, label=True, style=None, points=False):
    """The mean over the group's runs, with a band of one deviation. Returns (places, mean, deviation)."""
    at, values = on_common_places(curves)
    if not len(at):
        return at, at, at
    mean, deviation = values.mean(axis=0), (values.std(axis=0, ddof=1) if len(values) > 1 else np.full(len(at), np.nan))
    few = points and len(at) < 40 or len(at) < 3
    axes.plot(*thin(at, mean), color=group.color, linestyle=style or group.style, linewidth=1.7, label=group.text if label else None, marker="o" if few else None, markersize=3.5)
    if len(values) > 1:
        axes.fill_between(at, mean - deviation, mean + deviation, color=group.color, alpha=0.18, linewidth=0)
    return at, mean, deviation


def rows_of(group, what, drawn):
    return [[group.label, what, float(a), float(m), float(d)] for a, m, d in zip(*drawn)]


def legend_columns(groups):
    return 1 if max(len(g.text) for g in groups) > 24 else 2


def curves_picture(name, heading, words, groups, quantities, unit="iteration", height=1.7, points=False, **limits):
    """One panel a quantity. quantities: [(label, function of a run -> (places, values))]."""
    wanted = []
    for label, course_of in quantities:
        curves = [[course_of(r) for r in g.runs] for g in groups]
        if any(has_data(v) for c in curves for _, v in c):
            wanted.append((label, curves))
    if not wanted:
        return None
    figure, axes = panels([height] * len(wanted))
    rows, spans = [], []
    for one, (label, curves) in zip(axes, wanted):
        shown = []
        for group, of_group in zip(groups, curves):
            drawn = draw_group(one, group, of_group, points=points)
            rows += rows_of(group, label.replace("\n", " "), drawn)
            shown.append(drawn[1])
            spans.append(drawn[0])
        shown = np.concatenate(shown)
        if not len(shown):
            continue
        fit_y(one, shown, **limits)
        one.set_ylabel(label)
    if not rows:
        plt.close(figure)
        return None
    # a group without data in the first panel belongs into the legend as well
    for group in groups:
        if group.text not in axes[0].get_legend_handles_labels()[1]:
            axes[0].plot([], [], color=group.color, linestyle=group.style, label=group.text)
    count_axis(axes, np.concatenate(spans), unit)
    place_legend(axes[0], legend_columns(groups))
    return Picture(name, heading, words, figure, ["group", "quantity", unit, "mean", "deviation"], rows)


def smoothed(key, sign=1.0):
    def course_of(run):
        at, values = series(run.metrics, key)
        return smooth(at, sign * values) if len(at) else (at, values)
    return course_of


def gap(run):
    both = [m for m in run.metrics if "f_pos" in m and "f_neg" in m]
    at, real = series(both, "f_pos")
    _, sampled = series(both, "f_neg")
    return smooth(at, real - sampled) if len(at) else (at, real)


def held_out_course(run):
    points = held_out(run.metrics)
    return (points[1], 100 * points[2]) if points else (np.array([]), np.array([]))


def training_accuracy(run):
    at, values = series(run.metrics, "accuracy")
    return smooth(at, 100 * values) if len(at) else (at, values)


def draw_training(groups):
    band = " Bands: one standard deviation over seeds, as far as all of them have come." if any(len(g.runs) > 1 for g in groups) else ""
    units = {course(r.metrics, "frechet_distance")[0] for g in groups for r in g.runs if any("frechet_distance" in m for m in r.metrics)}
    unit = "epoch" if units == {"epoch"} else "iteration"

    def frechet(run):
        lines = [m for m in run.metrics if math.isfinite(number(m.get("frechet_distance")))]
        return series(lines, "frechet_distance", unit)

    median = "Moving medians." + band
    pictures = [
        curves_picture("accuracy", "Accuracy", "Of images that were not trained on, and of the training batches (moving median)." + band, groups,
                       [("held-out (%)", held_out_course), ("training (%)", training_accuracy)], height=1.9, points=True, floor=0, ceiling=100),
        curves_picture("frechet_distance", "Fr\u00e9chet distance of the samples", "The smaller, the more alike samples and real images are." + band, groups,
                       [("Fr\u00e9chet distance", frechet)], unit=unit, height=2.6, points=True, floor=0),
        curves_picture("energy", "Energy of real and sampled images", "E(x) = \u2212LSE of the logits. " + median, groups,
                       [("E(real)", smoothed("f_pos", -1)), ("E(sampled)", smoothed("f_neg", -1)), ("E(sampled)\n$-$ E(real)", gap)], height=1.35),
        curves_picture("loss", "Loss", median, groups, [("classification\n(nats)", smoothed("loss_clf")), ("generative\n(nats)", smoothed("loss_gen")),
                                                       ("total\n(nats)", smoothed("loss"))], height=1.35),
        curves_picture("gradients", "Gradient norms", median, groups, [("of the weights", smoothed("grad_norm")), ("of the pixels,\nin SGLD", smoothed("sgld_grad_norm"))]),
    ]
    return [p for p in pictures if p]


def group_tables(group, checkpoint, name, required):
    """[(run, rows)] of the group's runs that have the table."""
    found = []
    for run in group.runs:
        evaluation = evaluation_of(run, checkpoint)
        rows = run.table(evaluation, name, required) if evaluation else None
        if rows:
            found.append(rows)
    return found


def reliability(groups, checkpoint):
    needed = ["lower", "upper", "count", "confidence", "accuracy"]
    for bins in ("15", "20"):
        tables = [group_tables(g, checkpoint, f"reliability_{bins}.csv", needed) for g in groups]
        if any(tables):
            break
    else:
        return None
    figure, (axes,) = panels([3.6])
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    rows = []
    for group, of_group in zip(groups, tables):
        sums = {}
        for row in (r for t in of_group for r in t if r["count"] > 0):
            total = sums.setdefault(row["lower"], np.zeros(3))
            total += row["count"] * np.array([1, row["confidence"], row["accuracy"]])
        if not sums:
            continue
        counts, confidence, right = np.array([sums[k] for k in sorted(sums)]).T
        axes.plot(confidence / counts, right / counts, color=group.color, linestyle=group.style, marker="o", markersize=3.5, linewidth=1.6, label=group.text, clip_on=False)
        rows += [[group.label, float(n), float(c / n), float(a / n)] for n, c, a in zip(counts, confidence, right)]
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    place_legend(axes, legend_columns(groups))
    return Picture("reliability", "Reliability", f"Accuracy of the predictions by their confidence, {bins} bins; of several seeds the images of all together. "
                   "On the dashed line confidence is what it says.", figure, ["group", "images", "confidence", "accuracy"], rows)


def robustness(groups, checkpoint):
    tables = [group_tables(g, checkpoint, "robustness.csv", ["norm", "eps", "robust_accuracy"]) for g in groups]
    norms = sorted({r["norm"] for of_group in tables for t in of_group for r in t}, reverse=True)
    if not norms:
        return None
    figure, axes = panels([2.4] * len(norms), share=False)
    rows = []
    for one, norm in zip(axes, norms):
        for group, of_group in zip(groups, tables):
            curves = []
            for table in of_group:
                points = sorted((r["eps"], 100 * r["robust_accuracy"]) for r in table if r["norm"] == norm)
                if points:
                    curves.append(tuple(map(np.array, zip(*points))))
            rows += rows_of(group, norm, draw_group(one, group, curves, points=True))
        one.set_ylim(bottom=0)
        one.set_xlim(left=0)
        one.set_ylabel(f"accuracy (%), {NORMS.get(norm, norm)}")
        one.set_xlabel("\u03b5 (1/255 of the pixel range)")
    place_legend(axes[0], legend_columns(groups))
    return Picture("robustness", "Robust accuracy", "Accuracy under PGD attacks of growing strength.", figure, ["group", "norm", "eps", "mean", "deviation"], rows)


def landscape(groups, checkpoint):
    tables = [group_tables(g, checkpoint, "landscape_1d.csv", ["a", "mean_energy"]) for g in groups]
    if not any(tables):
        return None
    figure, (axes,) = panels([2.8])
    rows, shown = [], []
    for group, of_group in zip(groups, tables):
        curves = []
        for table in of_group:
            at, values = map(np.array, zip(*sorted((r["a"], r["mean_energy"]) for r in table)))
            curves.append((at, values - np.interp(0, at, values)))
        drawn = draw_group(axes, group, curves)
        shown.append(drawn[1])
        rows += rows_of(group, "mean_energy_above_centre", drawn)
    fit_y(axes, np.concatenate(shown))
    axes.set_xlabel("a, along a random direction")
    axes.set_ylabel("mean E(x) $-$ that at a = 0")
    place_legend(axes, legend_columns(groups))
    return Picture("landscape_1d", "Energy landscape", "How the mean energy of training images changes where the weights are moved by a times a random direction. "
                   "The flatter, the better the solution is expected to hold.", figure, ["group", "quantity", "a", "mean", "deviation"], rows)


def ood_roc(groups, checkpoint):
    tables = [group_tables(g, checkpoint, "ood_roc.csv", ["set", "score", "false_positive_rate", "true_positive_rate"]) for g in groups]
    sets = list(dict.fromkeys(r["set"] for of_group in tables for t in of_group for r in t if r["score"] == "px"))
    if not sets:
        return None
    figure, axes = grid_of(len(sets) + 1, 2.1)
    places, rows = np.linspace(0, 1, 201), []
    for one, name in zip(axes, sets):
        one.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        for group, of_group in zip(groups, tables):
            curves = []
            for table in of_group:
                points = by_key([r for r in table if r["score"] == "px"], "set").get(name)
                if points:
                    curves.append((places, np.interp(places, [p["false_positive_rate"] for p in points], [p["true_positive_rate"] for p in points])))
            rows += rows_of(group, name, draw_group(one, group, curves))
        one.set_title(shorten(name), loc="left", fontsize=9)
        unit_square(one)
    for i, one in enumerate(axes[:len(sets)]):
        if i % 2 == 0:
            one.set_ylabel("true positive rate")
        if i >= len(sets) - 2:
            one.set_xlabel("false positive rate")
    spare = axes[len(sets)]
    for group in groups:
        spare.plot([], [], color=group.color, linestyle=group.style, label=shorten(group.text, 26))
    spare.legend(loc="center left", frameon=False, fontsize=8.5)
    return Picture("ood_roc", "Strangers by log p(x): ROC curves", "One panel a set of strangers.", figure, ["group", "set", "false_positive_rate", "mean", "deviation"], rows)


def samples(groups):
    """The latest sheet of each group's first run that has one."""
    chosen = []
    for group in groups:
        run = next((r for r in group.runs if r.sheets), None)
        if run is None:
            continue
        name, path = run.sheets[-1]
        try:
            chosen.append((group, run, name, plt.imread(path)))
        except (OSError, ValueError, SyntaxError) as error:
            run.words.append(f"samples/{name} could not be read ({error}) and is not shown.")
    if not chosen:
        return None
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    side = WIDTH_INCHES / columns
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(WIDTH_INCHES, rows * (side + 0.25)), layout="constrained")
    for one in axes.flat:
        style_axes(one)
        one.set_axis_off()
    for one, (group, _, _, pixels) in zip(axes.flat, chosen):
        one.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        one.set_title(shorten(group.label, 34), fontsize=9)
    words = "The latest sheet of each: " + "; ".join(f"{run.name}, {sheet_title(name, run.metrics)}" for _, run, name, _ in chosen) + "."
    return Picture("samples", "Samples", words, figure, ["group", "run", "sheet"], [[g.label, r.name, n] for g, r, n, _ in chosen])


def draw(groups, checkpoint):
    pictures = draw_training(groups)
    if checkpoint:
        pictures += [p for p in (picture(groups, checkpoint) for picture in (reliability, robustness, landscape, ood_roc)) if p]
    sheet = samples(groups)
    return [sheet, *pictures] if sheet else pictures


# ---- page ----

def heading_of(group):
    return f'<span class="chip" style="background: var({VARIABLES[group.color]})"></span>{html.escape(group.text)}'


def comparison_page(groups, figures, settings, checkpoint, pictures, words, refresh_seconds):
    runs = [r for g in groups for r in g.runs]
    title = " and ".join(g.label for g in groups) if len(groups) < 3 else plural(len(groups), "model") + " compared"
    seeds = any(len(g.runs) > 1 for g in groups)
    subtitle = plural(len(runs), "run") + (f"; figures of checkpoint {checkpoint}" if checkpoint else "; none was evaluated yet")
    if seeds:
        subtitle += "; mean \u00b1 standard deviation over runs that differ in the seed alone"
    head = ["", *map(heading_of, groups)]
    rows = [[label + (" (%)" if kind == "percent" else "")] + [cell(v, kind, len(g.runs)) for g, v in zip(groups, figures.of[key])] for key, label, kind in figures.main]
    elsewhere = " AUPR and FPR95 of strangers are in the CSV files alone." if len(figures.main) < len(figures.rows) else ""
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in ("table.csv", "table.tex", "figures.csv"))
    sections = [page.notes(words + [f"{r.name}: {word}" for r in runs for word in r.words]),
                f"<h2>Figures</h2>\n{page.html_table(head, rows)}\n<p class=\"soft\" style=\"font-size:0.85rem\">As files: {links} (each run by itself).{elsewhere}</p>",
                "<h2>Settings that differ</h2>\n" + (page.html_table(head, settings) + '\n<p class="soft" style="font-size:0.85rem">As a file: <a href="settings.csv">settings.csv</a></p>'
                                                     if settings else '<p class="soft">None.</p>'),
                "<h2>Pictures</h2>\n" + page.pictures_grid(pictures) if pictures else ""]
    return page.make_page(title, subtitle, sections, refresh_seconds)
