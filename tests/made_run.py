#!/usr/bin/python3
"""Makes a run's folder with every file that tools/report reads; the figures are drawn, not measured.

    tests/made_run.py DIR [--seed N] [--config KEY=VALUE]... [--spread X] [--bare]     --bare: no evaluation; --spread: scales what differs by seed
"""
import argparse
import csv
import json
import math
import os

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("dir")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--config", action="append", default=[])
parser.add_argument("--spread", type=float, default=1.0)
parser.add_argument("--bare", action="store_true")
arguments = parser.parse_args()
draws = np.random.default_rng([arguments.seed, *"".join(arguments.config).encode()])
shift = arguments.spread * draws.normal()


def write_csv(path, columns, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


os.makedirs(os.path.join(arguments.dir, "samples"), exist_ok=True)
config = {"recipe": "sada-jem", "seed": arguments.seed, "depth": 16, "width": 4, "data": "cifar10", "sam": "sam", "rho": 0.2, "lr": 0.1, "lr_milestones": [60, 120, 180],
          "sgld_steps": 5, "gen_augment": False, "class_conditional": "off"}
for one in arguments.config:
    key, value = one.split("=", 1)
    config[key] = int(value) if value.isdigit() else value
with open(os.path.join(arguments.dir, "config.json"), "w", encoding="utf-8") as file:
    json.dump(config, file, indent=2)

EPOCHS, PER_EPOCH, LOG = 12, 400, 25
with open(os.path.join(arguments.dir, "metrics.jsonl"), "w", encoding="utf-8") as file:
    for iteration in range(LOG, EPOCHS * PER_EPOCH + 1, LOG):
        t = iteration / (EPOCHS * PER_EPOCH)
        noise = draws.normal(size=6)
        line = {"iteration": iteration, "epoch": int(iteration / PER_EPOCH), "time_s": 0.5 * iteration, "images_per_s": 250 + 5 * noise[0], "lr": 0.1 * (1 - t),
                "loss_clf": 2.2 * math.exp(-4 * t) + 0.2 + 0.1 * abs(noise[1]), "loss_gen": 0.3 * noise[2], "f_pos": 3 + 5 * t + 0.2 * noise[3],
                "f_neg": 3 + 5 * t + 0.4 * noise[4], "grad_norm": 1 + 0.3 * abs(noise[5]), "sgld_grad_norm": 0.5 + 0.1 * noise[0],
                "accuracy": min(1.0, 0.9 - 0.7 * math.exp(-4 * t) + 0.04 * noise[1])}
        line["loss"] = line["loss_clf"] + line["loss_gen"]
        file.write(json.dumps(line) + "\n")
        if iteration // PER_EPOCH > (iteration - LOG) // PER_EPOCH and (iteration // PER_EPOCH) % 2 == 0:
            held_out = {"iteration": iteration, "epoch": iteration // PER_EPOCH, "test_accuracy": 0.88 - 0.6 * math.exp(-5 * t) + 0.01 * shift,
                        "frechet_distance": 20 + 120 * math.exp(-5 * t) + 3 * shift}
            file.write(json.dumps(held_out) + "\n")
            sheet = np.kron(draws.random((8, 8, 3)) * t + 0.5 * (1 - t), np.ones((8, 8, 1)))
            plt.imsave(os.path.join(arguments.dir, "samples", f"iteration_{iteration:07}.png"), sheet)

if arguments.bare:
    raise SystemExit
evaluation = os.path.join(arguments.dir, "evaluation", "last")
os.makedirs(evaluation, exist_ok=True)
sets = {"svhn": -2.0, "cifar100": -0.7, "celeba": -1.2, "interpolation": -0.9, "uniform": -6.0}
figures = {"data": "cifar10", "split": "test", "images": 10000, "weights": "last", "iteration": EPOCHS * PER_EPOCH, "accuracy": 0.875 + 0.01 * shift, "nll": 0.41, "brier": 0.18, "ece_15": 0.0204, "ece_20": 0.0211, "ece_adaptive": 0.0198, "seconds": 12.5,
           "ood": {name: {"images": 10000, "auroc_px": 0.5 - at / 15, "auroc_py": 0.7, "auroc_pxgrad": 0.6, "aupr_in_px": 0.8, "aupr_out_px": 0.75, "fpr95_px": 0.4}
                   for name, at in sets.items()},
           "robust_accuracy": {"1": 0.81, "2": 0.7, "4": 0.52, "8": 0.2, "16": 0.05}, "robust_accuracy_interval": {"1": [0.78, 0.84], "2": [0.67, 0.73]},
           "pgd": {"norm": "linf", "images": 1000, "steps": 50}, "apgd": {"ce": 0.21, "dlr": 0.19, "t": 0.18, "all": 0.18}, "fid": 11.4, "is_mean": 8.63, "is_std": 0.1,
           "kid": 0.012, "precision": 0.6, "recall": 0.5, "density": 0.8, "coverage": 0.7, "frechet_distance": 21.7, "protocols": {"accuracy": "engine", "fid": "authors", "pgd": "authors"}, "landscape": {"images": 1000, "energy": -8.5}}
with open(os.path.join(evaluation, "evaluation.json"), "w", encoding="utf-8") as file:
    json.dump(figures, file)
edges = np.linspace(0, 1, 16)
write_csv(os.path.join(evaluation, "reliability_15.csv"), ["lower", "upper", "count", "confidence", "accuracy"],
          [[a, b, *((int(1000 * b ** 4) + 1, (a + b) / 2, max(0, (a + b) / 2 - 0.04)) if a >= 0.06 else (0, "", ""))] for a, b in zip(edges, edges[1:])])
bins = np.linspace(-6, 14, 101)
rows = []
for name, at in {"test": 0.0, **sets}.items():
    density, _ = np.histogram(8 + at + draws.normal(size=5000), bins, density=True)
    rows += [[name, int(name == "test"), a, b, int(1000 * d), d] for a, b, d in zip(bins, bins[1:], density)]
write_csv(os.path.join(evaluation, "ood_histogram.csv"), ["set", "in_distribution", "lower", "upper", "count", "density"], rows)
write_csv(os.path.join(evaluation, "ood_roc.csv"), ["set", "score", "false_positive_rate", "true_positive_rate"],
          [[name, score, x, x ** (1 / (1 - at / k))] for name, at in sets.items() for score, k in (("px", 1), ("py", 2), ("pxgrad", 4)) for x in np.linspace(0, 1, 51)])
write_csv(os.path.join(evaluation, "robustness.csv"), ["norm", "eps", "robust_accuracy", "low", "high", "images"],
          [[norm, eps, *(0.87 * math.exp(-eps / scale) + d for d in (0, -0.03, 0.03)), 1000]
           for norm, scale, all_eps in (("linf", 7, (0, 1, 2, 4, 8, 12, 16, 22, 30)), ("l2", 80, (0, 32, 64, 128))) for eps in all_eps])
curve = [(a, -8 + 20 * a * a + shift * a ** 3) for a in np.linspace(-1, 1, 51)]
write_csv(os.path.join(evaluation, "landscape_1d.csv"), ["a", "mean_energy", "sum_energy"], [[a, e, 1000 * e] for a, e in curve])
write_csv(os.path.join(evaluation, "landscape_line.csv"), ["a", "mean_energy", "sum_energy"], [[a, -8 + 4 * math.sin(3 * a), 0] for a in np.linspace(-0.5, 1.5, 41)])
grid = np.linspace(-1, 1, 21)
write_csv(os.path.join(evaluation, "landscape_2d.csv"), ["a", "b", "mean_energy", "sum_energy"], [[a, b, -8 + 20 * a * a + 12 * b * b - 6 * a * b, 0] for a in grid for b in grid])
