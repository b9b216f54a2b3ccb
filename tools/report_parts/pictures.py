"""The pictures of one run: each function gives a Picture, or None where the run holds no data for it."""
import math

import matplotlib.pyplot as plt
import numpy as np

from .drawing import (BLUE, COLORS, GREEN, GREY, GRID, INK, ORANGE, PURPLE, WIDTH_INCHES, Picture, count_axis, draw_curve, fit_y, panels, place_legend, tick_text)
from .reading import NORMS, dict_or_empty, has_data, held_out, natural_key, number, plural, purified, series

IN_DISTRIBUTION = "test"  # what the evaluation's tables call it
SCORES = {"px": "log p(x)", "py": "max p(y|x)", "pxgrad": "\u2212|\u2202 log p(x)/\u2202x|"}


def draw_training(run):
    """Those that show the course of training."""
    return [p for p in (draw(run.metrics) for draw in (accuracy, energy, loss, gradients, chains, frechet)) if p] if run.metrics else []


def draw_evaluation(run, evaluation):
    """Those that show what `evaluate` measured of one checkpoint."""
    pictures = [reliability(run, evaluation), ood_histogram(run, evaluation), ood_roc(run, evaluation), robustness(run, evaluation),
                landscape_lines(run, evaluation, "landscape_1d"), landscape_lines(run, evaluation, "landscape_line"), landscape_2d(run, evaluation)]
    return [p for p in pictures if p]


def table_of(metrics, *keys):
    """The log lines that hold any of the keys, as columns and rows."""
    columns = ["iteration", "epoch", *(k for k in keys if any(k in m for m in metrics))]
    return columns, [[m.get(c, "") for c in columns] for m in metrics if any(k in m for k in columns[2:])]


# ---- training ----

def accuracy(metrics):
    iterations, training = series(metrics, "accuracy")
    points = held_out(metrics)
    if not has_data(training) and points is None:
        return None
    figure, (axes,) = panels([2.9])
    shown, spans = [], []
    if has_data(training):
        # single batches scatter widely: the frame follows their median
        shown.append(draw_curve(axes, iterations, 100 * training, BLUE, "training batches")[:-2])
        spans.append(iterations)
    if points is not None:
        name, at, values = points
        axes.plot(at, 100 * values, color=ORANGE, marker="o", markersize=5 if len(at) < 40 else 2, linewidth=1.2, label=f"{name} images", zorder=3, clip_on=False)
        axes.annotate(f"{100 * values[-1]:.1f} %", (at[-1], 100 * values[-1]), xytext=(7, 0), textcoords="offset points", ha="left", va="center",
                      color=ORANGE, fontweight="bold")
        shown.append(100 * values)
        spans.append(at)
    fit_y(axes, np.concatenate(shown), floor=0, ceiling=100)
    axes.set_ylabel("accuracy (%)")
    count_axis([axes], np.concatenate(spans), "iteration")
    place_legend(axes, 2)
    return Picture("accuracy", "Accuracy", "Share of images whose class is right. Training: pale, each logged batch; strong, their moving median. "
                   "Points: images that were not trained on.", figure, *table_of(metrics, "accuracy", "test_accuracy", "valid_accuracy"))


def energy(metrics):
    both = [m for m in metrics if "f_pos" in m and "f_neg" in m]
    iterations, f_pos = series(both, "f_pos")
    _, f_neg = series(both, "f_neg")
    if not has_data(f_pos) or not has_data(f_neg):
        return None
    figure, (energies, gap) = panels([2.1, 1.3])
    shown = [draw_curve(energies, iterations, -f_pos, BLUE, "real images"), draw_curve(energies, iterations, -f_neg, ORANGE, "sampled images")]
    fit_y(energies, np.concatenate(shown))
    energies.set_ylabel("energy E(x)")
    place_legend(energies, 2)
    fit_y(gap, np.append(draw_curve(gap, iterations, f_pos - f_neg, GREEN), 0.0))
    gap.axhline(0, color=GREY, linewidth=0.8)
    gap.set_ylabel("E(sampled)\n$-$ E(real)")
    count_axis([energies, gap], iterations, "iteration")
    rows = [[m["iteration"], m.get("epoch", ""), -number(m["f_pos"]), -number(m["f_neg"])] for m in both]
    return Picture("energy", "Energy of real and sampled images",
                   "E(x) = \u2212LSE of the logits, mean over the batch. A gap that stays near zero means that the samples are as likely as the data; "
                   "one that grows without end announces divergence, and the axis turns logarithmic there.", figure,
                   ["iteration", "epoch", "energy_real", "energy_sampled"], rows)


def loss(metrics):
    wanted = [("loss_clf", "classification\n(nats)", BLUE), ("loss_gen", "generative\n(nats)", ORANGE), ("loss", "total\n(nats)", INK)]
    return stacked("loss", "Loss", metrics, wanted,
                   "Cross-entropy of the labelled batch; difference of the mean log-densities of sampled and real images; their weighted sum. "
                   "Pale: each logged value; strong: their moving median. Single spikes may lie outside the frame.")


def gradients(metrics):
    wanted = [("grad_norm", "of the weights", BLUE), ("sgld_grad_norm", "of the pixels,\nin SGLD", ORANGE)]
    return stacked("gradients", "Gradient norms", metrics, wanted,
                   "Length of the gradient that the optimizer gets, and of the energy's gradient that moves the samples. "
                   "Pale: each logged value; strong: their moving median.", height=1.6)


def chains(metrics):
    """What the samples' way says before a run diverges (docs/training.md)."""
    percent = [{**m, "clamped": 100 * number(m["clamped"])} if "clamped" in m else m for m in metrics]
    wanted = [("chain_way", "way of the chains,\n$|x_K - x_0|$", BLUE), ("clamped", "pixels at $\\pm 1$\n(%)", ORANGE)]
    return stacked("chains", "The samples' way", percent, wanted,
                   "How far the chains of an iteration get from where they began, root mean square over the batch, and how many of their values end "
                   "at \u22121 or 1. Both leap before a run diverges. Pale: each logged value; strong: their moving median.", height=1.6)


def stacked(name, heading, metrics, wanted, words, height=1.25):
    """One panel a quantity, under each other. wanted: [(key, label, color)]."""
    found = [(label, color, *series(metrics, key)) for key, label, color in wanted]
    found = [f for f in found if has_data(f[3])]
    if not found:
        return None
    figure, axes = panels([height] * len(found))
    for one, (label, color, iterations, values) in zip(axes, found):
        fit_y(one, draw_curve(one, iterations, values, color))
        one.set_ylabel(label)
        if one.get_ylim()[0] < 0 < one.get_ylim()[1]:
            one.axhline(0, color=GREY, linewidth=0.8)
    count_axis(axes, np.concatenate([f[2] for f in found]), "iteration")
    return Picture(name, heading, words, figure, *table_of(metrics, *(key for key, _, _ in wanted)))


def course(metrics, key):
    """(unit, places, values) without gaps, by epoch where every line says its epoch, else by iteration."""
    lines = [m for m in metrics if math.isfinite(number(m.get(key)))]
    unit = "epoch" if all(math.isfinite(number(m.get("epoch"))) for m in lines) else "iteration"
    at, values = series(lines, key, unit)
    return unit, at, values


def frechet(metrics):
    unit, at, values = course(metrics, "frechet_distance")
    if not len(values):
        return None
    figure, (axes,) = panels([2.6])
    axes.plot(at, values, color=PURPLE, marker="o", markersize=5 if len(at) < 40 else 2, linewidth=1.5, clip_on=False, zorder=3)
    fit_y(axes, values, floor=0)
    axes.set_ylabel("Fr\u00e9chet distance")
    count_axis([axes], at, unit)
    return Picture("frechet_distance", "Fr\u00e9chet distance of the samples",
                   "Between features of samples and of real images, as training measured it; the smaller, the more alike. It is no FID unless Inception gave the features.",
                   figure, *table_of(metrics, "frechet_distance"))


MONTAGE_SHEETS = 6


def spread(items, count):
    """At most count of them, evenly spread, first and last among them."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]


def samples(run):
    """A picture of samples over training, for papers: a part of up to six sheets."""
    numbered = [s for s in run.sheets if natural_key(s[0])[0] == 0]
    if len(numbered) < 2:
        return None
    chosen = []
    for name, path in spread(numbered, MONTAGE_SHEETS):
        try:
            chosen.append((name, plt.imread(path)))
        except (OSError, ValueError, SyntaxError) as error:
            run.words.append(f"samples/{name} could not be read ({error}) and is missing in the picture of samples.")
    if not chosen:
        return None
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    side = WIDTH_INCHES / columns
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(side * columns, rows * (side + 0.2)), layout="constrained")
    for one in axes.flat:
        one.set_axis_off()
    for one, (name, pixels) in zip(axes.flat, chosen):
        one.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        one.set_title(sheet_title(name, run.metrics), fontsize=9)
    table = [[name, iteration_of(name), epoch_of(name, run.metrics)] for name, _ in run.sheets]
    return Picture("samples", "Samples over training", "", figure, ["sheet", "iteration", "epoch"], table)


def iteration_of(sheet):
    numbers = natural_key(sheet)[1]
    return numbers[-1] if numbers else ""


def epoch_of(sheet, metrics):
    """Of the log line that is nearest before the sheet."""
    iteration = iteration_of(sheet)
    before = [m for m in metrics if iteration != "" and m["iteration"] <= iteration and "epoch" in m]
    return before[-1]["epoch"] if before else ""


def sheet_title(sheet, metrics):
    words = sheet.rsplit(".", 1)[0].replace("_", " ").replace("-", " ")
    iteration, epoch = iteration_of(sheet), number(epoch_of(sheet, metrics))
    if words.startswith("iteration") and iteration != "":
        return f"iteration {iteration:,}" + (f", epoch {epoch:.3g}" if math.isfinite(epoch) else "")
    return words


# ---- one checkpoint ----

def reliability(run, evaluation):
    for bins in ("15", "20", "adaptive"):
        rows = run.table(evaluation, f"reliability_{bins}.csv", ["lower", "upper", "count", "confidence", "accuracy"])
        rows = [r for r in rows or [] if r["count"] > 0]
        if rows:
            break
    else:
        return None
    figure, (axes, counts) = panels([3.2, 0.9])
    lower, upper, share, confidence, right = (np.array([r[k] for r in rows]) for k in ("lower", "upper", "count", "confidence", "accuracy"))
    width, share = upper - lower, 100 * share / share.sum()
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=3, label="ideal")
    axes.bar(100 * lower, 100 * right, 100 * width, align="edge", color=BLUE, edgecolor=GRID, linewidth=0.5, label="accuracy")
    for which, bottom, color, alpha, label in ((confidence > right, right, ORANGE, 0.35, "too confident"), (confidence < right, confidence, GREEN, 1, "too hesitant")):
        if which.any():
            axes.bar(100 * lower[which], 100 * np.abs(confidence - right)[which], 100 * width[which], bottom=100 * bottom[which], align="edge", color=color, alpha=alpha,
                     edgecolor=GRID, linewidth=0.5, label=label)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy (%)")
    place_legend(axes, 4, fontsize=8.5, columnspacing=1.0)
    counts.bar(100 * lower, share, 100 * width, align="edge", color=GREY, edgecolor=GRID, linewidth=0.5)
    counts.set_ylabel("images (%)")
    counts.yaxis.get_major_locator().set_params(nbins=3)
    counts.set_xlabel("confidence, the largest p(y|x) (%)")
    error = number(evaluation.figures.get(f"ece_{bins}"))
    words = f"Accuracy of the predictions by their confidence, {'adaptive' if bins == 'adaptive' else bins} bins. Orange: confidence that accuracy lacks; green: accuracy that confidence lacks. Below, the share of images in each."
    if math.isfinite(error):
        words += f" Expected calibration error: {100 * error:.2f} %."
    return Picture(f"reliability_{file_name(evaluation.name)}", "Reliability", words, figure, ["lower", "upper", "count", "confidence", "accuracy"],
                   [[r[k] for k in ("lower", "upper", "count", "confidence", "accuracy")] for r in rows])


def file_name(name):
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def by_key(rows, key):
    groups = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def grid_of(count, height):
    """Panels for count small pictures, two in a row where there is more than one; those that stay over are blank."""
    columns = 1 if count == 1 else 2
    figure, axes = panels([height] * -(-count // columns), columns, share=False)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes


def steps(axes, rows, color, label):
    edges = np.array([r["lower"] for r in rows] + [rows[-1]["upper"]])
    density = np.array([r["density"] for r in rows])
    axes.stairs(density, edges, fill=True, color=color, alpha=0.35)
    axes.stairs(density, edges, color=color, linewidth=1.2, label=label)


def ood_histogram(run, evaluation):
    needed = ["set", "lower", "upper", "density"]
    rows = run.table(evaluation, "ood_histogram.csv", needed)
    if not rows:
        return None
    sets = by_key(rows, "set")
    inside = next((s for s in sets if truth(sets[s][0].get("in_distribution"))), IN_DISTRIBUTION)
    strangers = [s for s in sets if s != inside]
    if not strangers or inside not in sets:
        run.words.append(f"ood_histogram.csv of {evaluation.name} holds no in-distribution set beside another one (half-written) and was left out.")
        return None
    figure, axes = grid_of(len(strangers), 2.6 if len(strangers) == 1 else 1.75)
    occupied = [r for r in rows if r["density"] > 0] or rows
    low, high = min(r["lower"] for r in occupied), max(r["upper"] for r in occupied)
    for one, name in zip(axes, strangers):
        steps(one, sets[inside], BLUE, f"{inside}")
        steps(one, sets[name], ORANGE, name)
        score = number(dict_or_empty(dict_or_empty(evaluation.figures.get("ood")).get(name)).get("auroc_px"))
        one.set_title(shorten(name) + (f", AUROC {score:.3f}" if math.isfinite(score) else ""), loc="left", fontsize=9)
        one.set_xlim(low, high)
        one.set_ylim(bottom=0)
        one.set_yticks([])
        one.spines["left"].set_visible(False)
        one.grid(False)
    for one in axes[max(0, len(strangers) - 2):len(strangers)]:
        one.set_xlabel("log p(x) + constant")
    return Picture(f"ood_histogram_{file_name(evaluation.name)}", "Strangers by log p(x)",
                   f"Density of LSE(f(x)), which is log p(x) up to a constant. Blue: the {inside} images, of the kind trained on; orange: the set named above, of another kind. "
                   "The less they overlap, the better strangers are told.", figure,
                   ["set", "lower", "upper", "count", "density"], [[r["set"], r["lower"], r["upper"], r.get("count", ""), r["density"]] for r in rows])


def truth(value):
    return str(value).lower() in ("1", "1.0", "true", "yes")


def shorten(text, length=22):
    return text if len(text) <= length else text[:length - 1] + "\u2026"


def ood_roc(run, evaluation):
    rows = run.table(evaluation, "ood_roc.csv", ["set", "score", "false_positive_rate", "true_positive_rate"])
    if not rows:
        return None
    scores, sets = by_key(rows, "score"), list(by_key(rows, "set"))
    # with three scores the fourth place is the legend's
    beside = len(scores) == 3
    figure, axes = grid_of(len(scores), 3.3 if len(scores) == 1 else 2.1)
    for one, (score, lines) in zip(axes, scores.items()):
        one.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        for name, points in by_key(lines, "set").items():
            i = sets.index(name)
            one.plot([p["false_positive_rate"] for p in points], [p["true_positive_rate"] for p in points], color=COLORS[i % len(COLORS)],
                     linestyle=("-", "--")[i // len(COLORS) % 2], linewidth=1.5, label=shorten(name))
        one.set_title(SCORES.get(score, score), loc="left", fontsize=9)
        unit_square(one)
    handles, labels = axes[0].get_legend_handles_labels()
    if beside:
        axes[3].legend(handles, labels, loc="center left", frameon=False, handlelength=1.6)
    else:
        axes[len(scores) - 1].legend(handles, labels, loc="lower right", frameon=False, handlelength=1.4, fontsize=8)
    for i, one in enumerate(axes[:len(scores)]):
        if i % 2 == 0:
            one.set_ylabel("true positive rate")
        if i >= len(scores) - 2:
            one.set_xlabel("false positive rate")
    return Picture(f"ood_roc_{file_name(evaluation.name)}", "Strangers: ROC curves",
                   "Share of images of the kind trained on that are kept, over the share of strangers that are kept with them, for every threshold of the score.", figure,
                   ["set", "score", "false_positive_rate", "true_positive_rate"],
                   [[r["set"], r["score"], r["false_positive_rate"], r["true_positive_rate"]] for r in rows])


def unit_square(axes):
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    axes.set_xticks([0, 0.5, 1])
    axes.set_yticks([0, 0.5, 1])
    axes.set_aspect("equal")


def robustness(run, evaluation):
    needed = ["norm", "eps", "robust_accuracy"]
    rows = run.table(evaluation, "robustness.csv", needed)
    if not rows:
        return None
    norms = by_key(rows, "norm")
    figure, axes = grid_of(len(norms), 2.6 if len(norms) == 1 else 2.2)
    for one, (norm, points) in zip(axes, sorted(norms.items(), reverse=True)):
        points = sorted(points, key=lambda p: p["eps"])
        eps, right = np.array([p["eps"] for p in points]), 100 * np.array([p["robust_accuracy"] for p in points])
        low, high = (100 * np.array([number(p.get(k)) for p in points]) for k in ("low", "high"))
        one.fill_between(eps, low, high, color=BLUE, alpha=0.18, linewidth=0)
        one.plot(eps, right, color=BLUE, marker="o", markersize=4, linewidth=1.6, clip_on=False, zorder=3)
        one.set_ylim(0, max(5.0, 1.05 * np.nanmax(np.append(right, high))))
        one.set_xlim(left=0)
        one.set_title(NORMS.get(norm, norm), loc="left", fontsize=9)
        one.set_xlabel("\u03b5 (1/255 of the pixel range)")
    axes[0].set_ylabel("accuracy (%)")
    images = {int(r["images"]) for r in rows if isinstance(r.get("images"), float)}
    words = " ".join(["Accuracy under PGD attacks of growing strength", *purified(dict_or_empty(evaluation.figures.get("pgd")))]) + (f" on {plural(images.pop(), 'image')}" if len(images) == 1 else "") + "."
    if any(isinstance(r.get("low"), float) for r in rows):
        words += " The band is the 95 % interval."
    return Picture(f"robustness_{file_name(evaluation.name)}", "Robust accuracy", words, figure, ["norm", "eps", "robust_accuracy", "low", "high", "images"],
                   [[r["norm"], r["eps"], r["robust_accuracy"], r.get("low", ""), r.get("high", ""), r.get("images", "")] for r in rows])


def landscape_lines(run, evaluation, name):
    rows = run.table(evaluation, f"{name}.csv", ["a", "mean_energy"])
    if not rows:
        return None
    rows = sorted(rows, key=lambda r: r["a"])
    at, values = np.array([r["a"] for r in rows]), np.array([r["mean_energy"] for r in rows])
    figure, (axes,) = panels([2.6])
    axes.plot(at, values, color=BLUE, linewidth=1.8)
    fit_y(axes, values)
    if at[0] < at[-1]:
        axes.set_xlim(at[0], at[-1])
    axes.set_ylabel("mean energy E(x)")
    between = name == "landscape_line"
    axes.set_xlabel("a: from this checkpoint (0) to the other (1)" if between else "a, along a random direction")
    axes.axvline(0, color=GREY, linewidth=0.8)
    if between:
        axes.axvline(1, color=GREY, linewidth=0.8)
    words = ("Mean energy of training images on the straight line between the weights of two checkpoints." if between else
             "Mean energy of training images where the weights are moved by a times a random direction, each filter's part as long as the filter. "
             "The flatter, the better the solution is expected to hold. Mind the scale: it differs from model to model.")
    return Picture(f"{name}_{file_name(evaluation.name)}", "Energy between two checkpoints" if between else "Energy landscape", words, figure,
                   ["a", "mean_energy", "sum_energy"], [[r["a"], r["mean_energy"], r.get("sum_energy", "")] for r in rows])


def landscape_2d(run, evaluation):
    rows = run.table(evaluation, "landscape_2d.csv", ["a", "b", "mean_energy"])
    if not rows:
        return None
    a, b = sorted({r["a"] for r in rows}), sorted({r["b"] for r in rows})
    values = np.full((len(b), len(a)), np.nan)
    for r in rows:
        values[b.index(r["b"]), a.index(r["a"])] = r["mean_energy"]
    values[~np.isfinite(values)] = np.nan
    if len(a) < 2 or len(b) < 2 or not has_data(values):
        return None
    figure, (axes,) = panels([3.9])
    # over more than two powers of ten the centre would be one colour
    shown, unit = values, "mean energy E(x)"
    above = values - np.nanmin(values)
    if np.nanmax(above) > 100 * max(np.nanmedian(above), 1e-12):
        shown, unit = np.log10(1 + above), "log10(1 + mean energy above the lowest)"
    mesh = axes.pcolormesh(a, b, np.ma.masked_invalid(shown), cmap="viridis", shading="nearest", rasterized=True)
    if np.nanmax(shown) > np.nanmin(shown):
        axes.contour(a, b, np.ma.masked_invalid(shown), levels=9, colors="white", linewidths=0.6, alpha=0.7)
    axes.plot([0], [0], marker="+", color="white", markersize=9, markeredgewidth=1.5)
    axes.grid(False)
    axes.set_aspect("equal" if math.isclose(a[-1] - a[0], b[-1] - b[0], rel_tol=0.01) else "auto")
    axes.set_xlabel("a, along the first random direction")
    axes.set_ylabel("b, along the second")
    bar = figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.03)
    bar.set_label(unit)
    bar.outline.set_visible(False)
    bar.ax.tick_params(color=GREY, labelcolor=INK)
    bar.ax.yaxis.set_major_formatter(tick_text)
    return Picture(f"landscape_2d_{file_name(evaluation.name)}", "Energy landscape over two directions",
                   "As the picture before, along two random directions at once; the cross is the checkpoint.", figure,
                   ["a", "b", "mean_energy", "sum_energy"], [[r["a"], r["b"], r["mean_energy"], r.get("sum_energy", "")] for r in rows])
