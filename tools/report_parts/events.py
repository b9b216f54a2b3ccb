"""Exports runs for TensorBoard, through a writer of its own package: events files are not written by hand here."""
import math
import os

import matplotlib.pyplot as plt
import numpy as np

from .pictures import iteration_of
from .reading import UserError, figures_of, flatten, number


def find_writer():
    """A SummaryWriter class; the package tensorboardX offers the same."""
    reasons = []
    for module in ("torch.utils.tensorboard", "tensorboardX"):
        try:
            return __import__(module, fromlist=["SummaryWriter"]).SummaryWriter
        except ImportError as error:
            reasons.append(str(error))
    raise UserError(f"--tensorboard needs the writer of TensorBoard's package, and this Python has none ({'; '.join(reasons)}). Install torch and tensorboard, "
                    "or tensorboardX, beside matplotlib and numpy, and start this tool with that Python: PYTHON tools/report ... --tensorboard DIR.")


def export(runs, names, folder):
    """One folder a run under the given one; scalars by iteration, sheets as images, settings as text. An earlier export of the run is replaced."""
    writer_class = find_writer()
    for run, name in zip(runs, names):
        target = os.path.join(folder, name)
        if os.path.isdir(target):
            for old in os.listdir(target):
                if old.startswith("events.out.tfevents."):
                    os.remove(os.path.join(target, old))
        writer = writer_class(target)
        try:
            write_run(writer, run)
        finally:
            writer.close()


def write_run(writer, run):
    for entry in run.metrics:
        for key, value in entry.items():
            if key not in ("iteration", "time_s") and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(number(value)):
                writer.add_scalar(f"{'train' if key not in HELD_OUT else 'held out'}/{key}", value, entry["iteration"])
    last = run.metrics[-1]["iteration"] if run.metrics else 0
    for evaluation in run.evaluations:
        for key, _, value, _ in figures_of(evaluation):
            writer.add_scalar(f"evaluation of {evaluation.name}/{key.replace('.', '/')}", value, last)
    for name, path in run.sheets:
        try:
            pixels = plt.imread(path)
        except (OSError, ValueError, SyntaxError):
            continue  # the page says so
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        iteration = iteration_of(name)
        writer.add_image("samples", np.ascontiguousarray(pixels), last if iteration == "" else iteration, dataformats="HWC")
    if run.config:
        writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in flatten(run.config)), 0)


HELD_OUT = {"test_accuracy", "valid_accuracy", "frechet_distance"}
