"""The HTML: one file that asks for nothing from outside; pictures are in it. Light or dark as the reader's system is."""
import base64
import html
import math
import os

import numpy as np

from .pictures import SCORES, sheet_title, shorten, spread
from .reading import NORMS, dict_or_empty, figures_of, find_setting, flatten, has_data, held_out, is_authors, number, objects, plural, purified, series
from .drawing import smoothing_window

MAX_EARLIER_SHEETS = 12
MAX_SHEET_BYTES = 2 << 20  # of one sheet in the page

STYLE = """
:root { --paper: #fff; --ink: #1a1a1a; --soft: #5c5c5c; --line: #e2e2e2; --accent: #0072b2; --sheet: #f4f4f4;
  --blue: #0072b2; --orange: #d55e00; --green: #009e73; --purple: #b8558c; --sky: #3d9fd6; --ochre: #b38600; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #171717; --ink: #e8e8e8; --soft: #a3a3a3; --line: #343434; --accent: #6cb8e6; --sheet: #222;
    --blue: #5ab0ea; --orange: #ff9142; --green: #2fc79b; --purple: #e08fbd; --sky: #9ad4f5; --ochre: #e0b93a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 1rem; overflow-wrap: anywhere; }
h2 + .pictures { margin-top: 0; }
h3 { font-size: 1rem; margin: 0 0 0.5rem; }
p { margin: 0.4rem 0; }
a { color: var(--accent); }
.soft, figcaption, dt { color: var(--soft); }
.note { font-size: 0.9rem; margin-top: 0.9rem; padding-left: 0.75rem; border-left: 3px solid var(--ochre); color: var(--soft); overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); gap: 1.1rem 1.5rem; margin: 1.75rem 0 0; }
.figures div { display: flex; flex-direction: column-reverse; justify-content: flex-end; border-top: 2px solid var(--line); padding-top: 0.45rem; }
.figures dd { margin: 0; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.figures dt { font-size: 0.875rem; line-height: 1.35; }
.figures div:first-child { border-top-color: var(--accent); }
figure { margin: 0; }
figcaption { font-size: 0.85rem; line-height: 1.45; margin-top: 0.5rem; }
.files { white-space: nowrap; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 2.5rem 3rem; margin-top: 1.75rem; }
.pictures svg { width: 100%; height: auto; display: block; }
img { max-width: 100%; height: auto; display: block; }
img.sheet { image-rendering: pixelated; background: var(--sheet); }
.sheets { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem 3rem; align-items: start; }
.sheets > figure img { width: min(100%, 34rem); }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem; }
.strip img { width: 100%; }
.strip figcaption { margin-top: 0.25rem; font-size: 0.8rem; overflow-wrap: anywhere; }
.settings { columns: 21rem 3; column-gap: 3rem; }
.settings div { display: flex; justify-content: space-between; gap: 1rem; padding: 0.22rem 0; border-bottom: 1px solid var(--line); break-inside: avoid;
  font-size: 0.9rem; }
.settings span:last-child { text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.28rem 1.1rem 0.28rem 0; text-align: right; vertical-align: baseline; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8.5rem; }
tbody th { font-weight: 400; color: var(--soft); }
thead th { border-bottom: 2px solid var(--line); }
.chip { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%; margin-right: 0.4em; }
@media print { .files { display: none; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="jem_engine tools/report">{refresh}
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="soft">{subtitle}</p>
</header>
{sections}
</body>
</html>
"""


def make_page(title, subtitle, sections, refresh_seconds=None):
    """refresh_seconds: the page loads itself again, for as long as something renews it."""
    refresh = f'\n<meta http-equiv="refresh" content="{refresh_seconds}">' if refresh_seconds else ""
    return PAGE.format(title=html.escape(title), subtitle=html.escape(subtitle), style=STYLE, refresh=refresh, sections="\n".join(s for s in sections if s))


def notes(words):
    return "\n".join(f'<p class="note">{html.escape(word)}</p>' for word in dict.fromkeys(words))


def pictures_grid(pictures):
    if not pictures:
        return ""
    return '<div class="pictures">\n' + "\n".join(map(picture_figure, pictures)) + "\n</div>"


def picture_figure(picture):
    links = ", ".join(f'<a href="{html.escape(picture.name)}.{kind}">{kind.upper()}</a>' for kind in ("png", "pdf", "csv"))
    svg = picture.svg.replace("ARIA_LABEL", html.escape(picture.heading), 1)
    return (f'<figure><h3>{html.escape(picture.heading)}</h3>{svg}<figcaption>{html.escape(picture.words)} <span class="files">{links}</span></figcaption></figure>')


# ---- one run ----

def last_mean(metrics, key):
    """Mean over the last smoothing window: a single batch says little."""
    _, values = series(metrics, key)
    tail = values[-max(smoothing_window(len(values)), 1):]
    return float(np.nanmean(tail)) if has_data(tail) else math.nan


def duration(seconds):
    if not math.isfinite(seconds):
        return None
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds / 60 + 0.5), seconds / 3600
    return f"{minutes} min" if minutes < 100 else f"{hours:.1f} h"


def short(value, unit="", digits=3):
    if not math.isfinite(value):
        return None
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
    return (text + unit).replace("-", "\u2212")


def percent(value, digits=2):
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else None


def headline_figures(run):
    """(figure, what it is), the most important first; those without data are left out."""
    metrics, rows = run.metrics, []
    evaluation = run.evaluations[0].figures if run.evaluations else {}
    points = held_out(metrics)
    if points is not None:
        name, at, values = points
        best = int(np.argmax(values))
        rows.append((percent(values[-1]), f"{name} accuracy at the end"))
        if best != len(values) - 1:
            rows.append((percent(values[best]), f"best {name} accuracy, iteration {int(at[best]):,}"))
    elif "accuracy" in evaluation:
        split = {"valid": "validation", "train": "training"}.get(str(evaluation.get("split")), "test")
        rows.append((percent(number(evaluation["accuracy"])), f"{split} accuracy, {run.evaluations[0].name}"))
    rows.append((percent(last_mean(metrics, "accuracy"), 1), "training accuracy"))
    for key, name in (("ece_15", "calibration error (ECE, 15 bins)"), ("nll", "negative log-likelihood (nats)"), ("fid", "FID"),
                      ("frechet_distance", "Fr\u00e9chet distance of the samples"), ("is_mean", "Inception score")):
        if key in evaluation:
            value = number(evaluation[key])
            rows.append((percent(value) if key.startswith("ece") else short(value), name))
    rows.append((short(-last_mean(metrics, "f_pos")), "energy of real images"))
    rows.append((short(-last_mean(metrics, "f_neg")), "energy of sampled images"))
    if metrics:
        last = metrics[-1]
        epoch = number(last.get("epoch"))
        rows.append((f"{last['iteration']:,}", "iterations" + (f", {epoch:.3g} epochs" if epoch > 0 else "")))
        rows.append((duration(number(last.get("time_s"))), "training time"))
    _, rates = series(metrics, "images_per_s")
    rows.append((short(float(np.nanmedian(rates))) if has_data(rates) else None, "images a second, median"))
    return [(value, what) for value, what in rows if value is not None]


def headline(run):
    return ('<dl class="figures">\n' + "\n".join(f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(value)}</dd></div>" for value, what in headline_figures(run)) + "\n</dl>")


def data_uri(path):
    with open(path, "rb") as file:
        return "data:image/png;base64," + base64.b64encode(file.read(MAX_SHEET_BYTES + 1)).decode("ascii")


def sheet_figure(run, sheet, words):
    name, path = sheet
    try:
        if os.path.getsize(path) > MAX_SHEET_BYTES:
            run.words.append(f"samples/{name} is larger than {MAX_SHEET_BYTES >> 20} MiB and is not shown.")
            return ""
        source = data_uri(path)
    except OSError as error:
        run.words.append(f"samples/{name} could not be read ({error.strerror}) and is not shown.")
        return ""
    title = sheet_title(name, run.metrics)
    return f'<figure><img class="sheet" src="{source}" alt="Sample sheet, {html.escape(title)}"><figcaption>{words}{html.escape(title)}</figcaption></figure>'


def samples_section(run, montage):
    if not run.sheets:
        return ""
    *earlier, latest = run.sheets
    parts = ['<h2>Samples</h2>\n<div class="sheets">', sheet_figure(run, latest, "Latest sheet: ")]
    if earlier:
        parts += ['<div class="strip">', *(sheet_figure(run, s, "") for s in spread(earlier, MAX_EARLIER_SHEETS)), "</div>"]
    parts.append("</div>")
    if montage:
        links = ", ".join(f'<a href="{montage.name}.{kind}">{kind.upper()}</a>' for kind in ("png", "pdf", "csv"))
        parts.append(f'<p class="soft" style="font-size:0.85rem">Sheets over training as one picture: {links}</p>')
    return "\n".join(parts)


def rows_of(pairs):
    return '<div class="settings">\n' + "\n".join(f'<div><span class="soft">{html.escape(k)}</span><span>{html.escape(v)}</span></div>' for k, v in pairs) + "\n</div>"


def settings_section(run):
    return f"<h2>Settings</h2>\n{rows_of(flatten(run.config))}" if run.config else ""


def shown(value, kind):
    return percent(value) if kind == "percent" else short(value, digits=4)


def html_table(head, rows):
    """rows: [(heading, cell...)] of text."""
    cells = "\n".join("<tr>" + f'<th scope="row">{html.escape(row[0])}</th>' + "".join(f"<td>{html.escape(c)}</td>" for c in row[1:]) + "</tr>" for row in rows)
    return ('<div class="wide"><table>\n<thead><tr>' + "".join(f'<th scope="col">{h}</th>' for h in head) + f"</tr></thead>\n<tbody>\n{cells}\n</tbody>\n</table></div>")


def evaluation_section(evaluation, pictures):
    """One block a checkpoint: every figure that `evaluate` left, and the pictures of its tables."""
    figures = evaluation.figures

    def authors(key):
        return " (authors' protocol)" if is_authors(evaluation, key) else ""

    simple = [(label[0].upper() + label[1:] + authors(key), shown(value, kind)) for key, label, value, kind in figures_of(evaluation)
              if not key.startswith(("ood.", "robust_accuracy."))]
    parts = [f"<h2>Evaluation of {html.escape(evaluation.name)}</h2>"]
    said = described(figures)
    if said:
        parts.append(f'<p class="soft" style="margin: -0.5rem 0 1rem">{html.escape(said)}</p>')
    if simple:
        parts.append(rows_of(simple))
    parts += [ood_table(figures, authors("ood")), robust_table(figures, authors("robust_accuracy")), pictures_grid(pictures)]
    return "\n".join(p for p in parts if p)


def described(figures):
    """What was measured: 200 images of fashion-mnist (valid), iteration 40, weights last."""
    words = []
    data, split, images, iteration = (figures.get(k) for k in ("data", "split", "images", "iteration"))
    if isinstance(data, str):
        count = f"{images:,} images of " if isinstance(images, int) else ""
        words.append(count + data + (f" ({split})" if isinstance(split, str) else ""))
    if isinstance(iteration, int):
        words.append(f"iteration {iteration:,}")
    if isinstance(figures.get("weights"), str):
        words.append(f"weights {figures['weights']}")
    return ", ".join(words)


def ood_table(figures, protocol):
    sets = objects(figures.get("ood"))
    columns = [(f"{key}_{score}", f"{label} {score}") for key, label in (("auroc", "AUROC"), ("aupr_in", "AUPR in,"), ("aupr_out", "AUPR out,"), ("fpr95", "FPR95"))
               for score in SCORES if any(f"{key}_{score}" in scores for _, scores in sets)]
    if not columns:
        return ""
    head = ["strangers" + html.escape(protocol), *(html.escape(label) for _, label in columns), *(["images"] if any("images" in s for _, s in sets) else [])]
    rows = []
    for name, scores in sets:
        row = [shorten(name, 40)] + [f"{number(scores.get(key)):.3f}" if math.isfinite(number(scores.get(key))) else "\u2013" for key, _ in columns]
        rows.append(row + ([short(number(scores.get("images"))) or "\u2013"] if len(head) > len(row) else []))
    return html_table(head, rows)


def robust_table(figures, protocol):
    robust, between = dict_or_empty(figures.get("robust_accuracy")), dict_or_empty(figures.get("robust_accuracy_interval"))
    eps = [e for e in sorted(robust, key=lambda e: (number(e), e)) if math.isfinite(number(robust[e]))]
    if not eps:
        return ""
    pgd = dict_or_empty(figures.get("pgd"))
    norm = str(pgd.get("norm", ""))
    counts = [plural(int(number(pgd[k])), k[:-1]) for k in ("steps", "images") if math.isfinite(number(pgd.get(k)))]
    said = ", ".join([NORMS.get(norm, norm)] * bool(norm) + counts + purified(pgd))
    rows = [[f"\u03b5 = {e}/255", f"{100 * number(robust[e]):.1f} %"] + [interval_text(between.get(e))] * bool(between) for e in eps]
    return html_table(["PGD" + (f" ({html.escape(said)})" if said else "") + html.escape(protocol), "accuracy", *["95 % interval"] * bool(between)], rows)


def interval_text(pair):
    if not isinstance(pair, list) or len(pair) != 2:
        return "\u2013"
    return f"{100 * number(pair[0]):.1f} to {100 * number(pair[1]):.1f}"


def run_page(run, montage, training, evaluations, refresh_seconds):
    """evaluations: [(Evaluation, its pictures)]"""
    config = run.config
    recipe, data = find_setting(config, "recipe"), find_setting(config, "data", "dataset")
    if recipe and isinstance(config, dict) and "method" in config:
        recipe = f"A method of one's own with the values of {recipe}"
    title = f"{recipe} on {data}" if recipe and data else recipe or run.name
    depth, width, seed = (find_setting(config, k) for k in ("depth", "width", "seed"))
    kind = "IGEBM" if find_setting(config, "network") == "igebm" else "WRN"
    subtitle = ", ".join([f"{kind}-{depth}-{width}"] * bool(depth and width) + [f"seed {seed}"] * bool(seed) + [f"run folder {run.name}"])
    lost = sum(1 for m in run.metrics for key in ("loss", "loss_gen", "loss_clf") if key in m and not math.isfinite(number(m[key])))
    if lost:
        run.words.insert(0, f"{plural(lost, 'logged loss').replace('losss', 'losses')} {'are' if lost > 1 else 'is'} not finite: the run diverged there, and the pictures have gaps.")
    # made first: they may add words
    samples = samples_section(run, montage)
    training = f"<h2>Training</h2>\n{pictures_grid(training)}" if training else ""
    sections = [headline(run), notes(run.words), samples, training, *(evaluation_section(e, p) for e, p in evaluations), settings_section(run)]
    return make_page(title, subtitle, sections, refresh_seconds)
