"""Reads a run's folder as it is at this moment: of a run that is still going, files may be half-written. What cannot be read is left out, with a word."""
import csv
import json
import math
import os
import re

import numpy as np


class UserError(Exception):
    pass


class Evaluation:
    """What `evaluate` left of one checkpoint. figures: evaluation.json as it is; folder: where its CSV files lie, None for a lone file."""

    def __init__(self, name, figures, folder):
        self.name, self.figures, self.folder = name, figures, folder


class Run:
    """words: sentences about what was left out. sheets: [(name, path)] in order. metrics: log lines by iteration."""

    def __init__(self, folder):
        self.folder = folder
        self.name = os.path.basename(os.path.abspath(folder)) or folder
        self.words = []
        self.config = read_json(os.path.join(folder, "config.json"), "config.json", self.words)
        self.metrics, events, unreadable = read_metrics(os.path.join(folder, "metrics.jsonl"))
        self.words += [text_of_event(event) for event in events if event["event"] in ("rollback", "diverged")]
        if unreadable:
            self.words.append(f"{plural(unreadable, 'line')} of metrics.jsonl could not be read and {'were' if unreadable > 1 else 'was'} left out.")
        self.sheets = list_sheets(folder, self.words)
        self.evaluations = list_evaluations(folder, self.words)
        if not self.metrics and not self.evaluations:
            path = os.path.join(folder, "metrics.jsonl")
            if not os.path.exists(path):
                raise UserError(f"{folder} holds no run (no metrics.jsonl, no evaluation). Give the folder of a run, the DIR of `jem_engine train --out DIR`.")
            raise UserError(f"{path} holds no log line yet ({unreadable} unreadable). Wait for the run's first one, or give --watch.")

    def table(self, evaluation, name, required):
        """Rows of an evaluation's CSV as [{column: float or text}], or None where there is none that can be used."""
        if evaluation.folder is None:
            return None
        return read_table(os.path.join(evaluation.folder, name), required, f"{name} of {evaluation.name}", self.words)


def plural(count, noun):
    return f"{count} {noun}" + ("s" if count != 1 else "")


def open_run(folder):
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is no folder (a run is one). Give the folder of a run, the DIR of `jem_engine train --out DIR`.")
    return Run(folder)


def read_metrics(path):
    """The log lines in order of iteration; events, as they came; how many lines could not be read (a run that was killed may leave one cut short)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return [], [], 0
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}). Give the folder of a run, the DIR of `jem_engine train --out DIR`.") from error
    by_iteration, events, unreadable = {}, [], 0
    for line in lines:
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if isinstance(entry, dict) and "event" in entry:  # a word about the run, no measurement
                events.append(entry)
                continue
            # a resumed run may log an iteration again: keys of the later line win
            by_iteration.setdefault(int(entry["iteration"]), {}).update(entry)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            unreadable += 1
    return [{**by_iteration[i], "iteration": i} for i in sorted(by_iteration)], events, unreadable


def text_of_event(event):
    """What a log's line says of a run that diverged, for people."""
    text = f"Iteration {event.get('from', '?')} diverged: {event.get('reason', 'no reason is given')}."
    if event["event"] == "rollback":
        text += f" The run went back to iteration {event.get('iteration', '?')} and on {event.get('measure', '')}."
    return text


def read_json(path, what, words):
    """The file's object; an empty one where there is no file, or, with a word, no whole JSON object in it."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        words.append(f"{what} could not be read (no whole JSON object) and was left out.")
        return {}
    return found


def read_table(path, required, what, words):
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    except OSError:
        words.append(f"{what} could not be read and was left out.")
        return None
    lines = text.splitlines()
    # a number cut short is a number still
    cut = 1 if text and not text.endswith("\n") else 0
    reader = csv.reader(lines[:len(lines) - cut])
    header = next(reader, [])
    missing = [name for name in required if name not in header]
    if missing:
        words.append(f"{what} has no column {', '.join(missing)} (half-written, or another file) and was left out.")
        return None
    rows, broken = [], cut
    for fields in reader:
        row = {name: field if name in TEXT_COLUMNS else parse(field) for name, field in zip(header, fields)}
        if len(fields) == len(header) and all(is_usable(row[n], n) for n in required):
            rows.append(row)
        else:
            broken += 1
    if broken:
        words.append(f"{plural(broken, 'row')} of {what} could not be read and {'were' if broken > 1 else 'was'} left out.")
    return rows or None


TEXT_COLUMNS = {"set", "score", "norm"}
MAY_BE_UNKNOWN = {"confidence", "accuracy", "mean_energy"}  # of an empty bin; where the energy overflows


def is_usable(value, column):
    return column in TEXT_COLUMNS or isinstance(value, float) and (column in MAY_BE_UNKNOWN or math.isfinite(value))


def parse(field):
    """An empty field is an unknown number: an empty bin's accuracy, for example."""
    if not field.strip():
        return math.nan
    try:
        return float(field)
    except ValueError:
        return field


def number(value):
    """A float, NaN where the value is missing or no number."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def series(metrics, key, by="iteration"):
    """(iterations, values) of the lines that have the key; a line whose value is null or not finite stays, as a gap."""
    lines = [m for m in metrics if key in m and math.isfinite(number(m.get(by)))]
    values = np.array([number(m[key]) for m in lines], dtype=float)
    values[~np.isfinite(values)] = np.nan
    return np.array([number(m[by]) for m in lines], dtype=float), values


def has_data(values):
    return bool(np.isfinite(values).any())


def held_out(metrics):
    """(name, iterations, values) of the accuracy on images that were not trained on."""
    for key, name in (("test_accuracy", "test"), ("valid_accuracy", "validation")):
        iterations, values = series(metrics, key)
        if has_data(values):
            known = np.isfinite(values)
            return name, iterations[known], values[known]
    return None


def natural_key(name):
    """Sheets by the numbers in their names; one without a number (final.png) comes last."""
    numbers = [int(n) for n in re.findall(r"\d+", name)]
    return (0, numbers, name) if numbers else (1, [], name)


def list_sheets(run_dir, words):
    folder = os.path.join(run_dir, "samples")
    if not os.path.isdir(folder):
        return []
    whole, broken = [], []
    for name in sorted((n for n in os.listdir(folder) if n.lower().endswith(".png")), key=natural_key):
        path = os.path.join(folder, name)
        (whole if is_whole_png(path) else broken).append((name, path))
    if broken:
        words.append(f"samples/{broken[0][0]}{f' and {len(broken) - 1} more' if len(broken) > 1 else ''}: no whole PNG file, left out.")
    return whole


def is_whole_png(path):
    """Begins and ends as a PNG does. One that is being written has no end yet."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            file.seek(-8, os.SEEK_END)
            return start == b"\x89PNG\r\n\x1a\n" and file.read(4) == b"IEND"
    except OSError:
        return False


def list_evaluations(run_dir, words):
    """What `evaluate` left in the folder: last and best first, then by name."""
    root, found = os.path.join(run_dir, "evaluation"), []
    for folder, _, names in os.walk(root):
        if "evaluation.json" in names:
            found.append((os.path.relpath(folder, root), folder))
    results = []
    for name, folder in found:
        figures = read_json(os.path.join(folder, "evaluation.json"), f"evaluation/{name}/evaluation.json", words)
        if figures:
            results.append(Evaluation(checkpoint_name(figures) if name == "." else name, figures, folder))
    early = read_json(os.path.join(run_dir, "evaluation.json"), "evaluation.json", words)  # where earlier versions left it
    if early:
        results.append(Evaluation(checkpoint_name(early), early, None))
    order = {"last": 0, "best": 1}
    return sorted(results, key=lambda e: (order.get(e.name, 2), e.name))


def checkpoint_name(figures):
    return os.path.splitext(os.path.basename(str(figures.get("checkpoint", "checkpoint"))))[0]


def flatten(node, prefix=""):
    """(dotted key, text) of every setting or figure."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from flatten(value, f"{prefix}{key}.")
    else:
        if isinstance(node, bool):
            text = "yes" if node else "no"
        elif isinstance(node, list) and not any(isinstance(v, (dict, list)) for v in node):
            text = ", ".join(str(v) for v in node)
        elif node is None or node == "":
            text = "none"
        else:
            text = node if isinstance(node, str) else json.dumps(node)
        yield prefix[:-1], text


def find_setting(config, *names):
    for key, text in flatten(config):
        if key.rsplit(".", 1)[-1].replace("-", "_") in names:
            return text
    return None


def purified(pgd):
    """["through 10 steps of purification"], or nothing"""
    steps = number(pgd.get("purify_steps"))
    return [f"through {plural(int(steps), 'step')} of purification"] if math.isfinite(steps) and steps > 0 else []


def figures_of(evaluation):
    """[(key, label, value, kind)] of an evaluation's numbers in the order of reading; kind: percent or plain. Keys are joined by dots: ood.svhn.auroc_px."""
    found, figures = [], evaluation.figures

    def add(key, label, value, kind="plain"):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(number(value)):
            found.append((key, label, float(value), kind))

    for key, (label, kind) in FLAT_FIGURES.items():
        if key in figures:
            add(key, label, figures[key], kind)
    for name, scores in sorted(objects(figures.get("ood"))):
        for key, label in OOD_FIGURES:
            for score in ("px", "py", "pxgrad"):
                add(f"ood.{name}.{key}_{score}", f"{label}, {name}, {score}", scores.get(f"{key}_{score}"))
    norm = str(dict_or_empty(figures.get("pgd")).get("norm", ""))
    robust = dict_or_empty(figures.get("robust_accuracy"))
    for eps in sorted(robust, key=lambda e: (number(e), e)):
        add(f"robust_accuracy.{eps}", f"PGD accuracy, {NORMS.get(norm, norm)}{' ' if norm else ''}\u03b5 = {eps}/255", robust[eps], "percent")
    apgd = dict_or_empty(figures.get("apgd"))
    for key, label in (("ce", "APGD-CE"), ("dlr", "then APGD-DLR"), ("t", "then targeted APGD-DLR"), ("all", "APGD, all")):
        add(f"apgd.{key}", f"{label} accuracy", apgd.get(key), "percent")
    for key in sorted(figures):  # figures that this page knows nothing of
        if key not in FLAT_FIGURES and key not in NO_FIGURES:
            inside = {f"{key}.{k}": v for k, v in figures[key].items() if k not in NO_FIGURES} if isinstance(figures[key], dict) else {key: figures[key]}
            for name, value in inside.items():
                add(name, re.sub("[._]", " ", name), value)
    return found


def is_authors(evaluation, key):
    """Whether a figure was measured by the authors' protocol; the file says it metric by metric."""
    return dict_or_empty(evaluation.figures.get("protocols")).get(METRIC_OF.get(key.split(".")[0], key.split(".")[0])) == "authors"


NORMS = {"linf": "L\u221e", "l2": "L2"}
OOD_FIGURES = (("auroc", "AUROC"), ("aupr_in", "AUPR in"), ("aupr_out", "AUPR out"), ("fpr95", "FPR95"))
FLAT_FIGURES = {
    "accuracy": ("accuracy", "percent"), "nll": ("negative log-likelihood", "plain"), "brier": ("Brier score", "plain"),
    "ece_15": ("ECE, 15 bins", "percent"), "ece_20": ("ECE, 20 bins", "percent"), "ece_adaptive": ("ECE, adaptive bins", "percent"),
    "fid": ("FID", "plain"), "is_mean": ("Inception score", "plain"), "is_std": ("Inception score, deviation over splits", "plain"), "kid": ("KID", "plain"),
    "precision": ("precision", "plain"), "recall": ("recall", "plain"), "density": ("density", "plain"), "coverage": ("coverage", "plain"),
    "frechet_distance": ("Fr\u00e9chet distance", "plain"),
}
NO_FIGURES = {"seconds", "images", "iteration", "epoch", "seed", "checkpoint", "ood", "pgd", "apgd", "robust_accuracy", "robust_accuracy_interval", "protocols"}
METRIC_OF = {"nll": "accuracy", "brier": "accuracy", "ece_15": "ece", "ece_20": "ece", "ece_adaptive": "ece", "robust_accuracy": "pgd", "is_mean": "is", "is_std": "is",
             "precision": "prd", "recall": "prd", "density": "prd", "coverage": "prd", "frechet_distance": "fid"}


def dict_or_empty(value):
    return value if isinstance(value, dict) else {}


def objects(value):
    return [(k, v) for k, v in dict_or_empty(value).items() if isinstance(v, dict)]
