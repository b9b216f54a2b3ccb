"""metrics.json: what other programs make of the inputs of the metrics' tests.

The file was made by

    python3 tests/golden/make_metrics.py --out tests/golden/metrics.json

(needs numpy, scipy, scikit-learn, torch, torchmetrics and pytorch-fid; one core, some ten seconds). Inputs are not stored: they come from
SplitMix64 (`Draws`), by additions, multiplications and roundings that the C++ tests (tests/engine/evaluation/golden_metrics.h) repeat
exactly.

OOD scores: scikit-learn. Histograms: numpy. Calibration: torchmetrics, with as many images a bin numpy. Wilson's interval: scipy. Frechet
distance: pytorch-fid (scipy's root of a general matrix, good to 1e-8 where a covariance is singular) and numpy's singular values
of the images' own features, which need no root. Kernel distance: torchmetrics. Inception score and neighbours: numpy, all distances at once.
"""

import argparse
import json
import warnings

import numpy as np

kMask = (1 << 64) - 1


class Draws:
    """TestData of tests/check.h."""

    def __init__(self, seed):
        self.state = seed

    def bits(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & kMask
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & kMask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & kMask
        return z ^ (z >> 31)

    def uniforms(self, count, low, high):
        """f32, as f64."""
        u = np.array([self.bits() >> 11 for _ in range(count)], dtype=np.float64) * 2.0**-53
        return (low + (high - low) * u).astype(np.float32).astype(np.float64)


def features(seed, count, dimension, shift):
    """[count, dimension], f32: each number shares half of the one before it in its row."""
    x = Draws(seed).uniforms(count * dimension, -1, 1).reshape(count, dimension)
    for d in range(1, dimension):
        x[:, d] = (x[:, d] + 0.5 * x[:, d - 1]).astype(np.float32)
    return (x + shift).astype(np.float32).astype(np.float64)


def probabilities(seed, count, classes):
    """[count, classes]: cubes of uniform numbers, by their sum in order."""
    u = Draws(seed).uniforms(count * classes, 0, 1).reshape(count, classes)
    p = u * u * u
    total = np.zeros(count)
    for y in range(classes):
        total = total + p[:, y]
    return p / total[:, None]


def scores(seed, count, low, high, steps):
    """steps: rounded down to that many values a unit, so that there are ties; 0: none."""
    s = Draws(seed).uniforms(count, low, high)
    return np.floor(s * steps) / steps if steps else s


kDetection = {  # name: (in, out), each (seed, count, low, high, steps)
    "overlapping": ((1, 500, 0, 2, 0), (2, 300, -1, 1, 0)),
    "ties": ((3, 400, 0, 2, 4), (4, 700, -1, 1, 4)),
    "all_equal": ((5, 20, 0, 0.5, 1), (6, 30, 0, 0.5, 1)),
    "separable": ((7, 50, 3, 4, 0), (8, 60, 0, 1, 0)),
    "upside_down": ((9, 50, 0, 1, 0), (10, 60, 3, 4, 0)),
    "one_each": ((11, 1, 0, 1, 0), (12, 1, 0, 1, 0)),
    "few": ((13, 3, 0, 1, 0), (14, 2, 0, 1, 0)),
    "twenty": ((15, 20, 0, 1, 0), (16, 40, 0, 1, 0)),
}


def detection_cases():
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
    cases = {}
    for name, (own, strange) in kDetection.items():
        a, b = scores(*own), scores(*strange)
        y = np.concatenate([np.ones(len(a)), np.zeros(len(b))])
        s = np.concatenate([a, b])
        fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
        cases[name] = dict(inside=own, outside=strange, auroc=roc_auc_score(y, s), aupr_in=average_precision_score(y, s),
                           aupr_out=average_precision_score(1 - y, -s), fpr95=float(fpr[tpr >= 0.95 - 1e-12].min()))
    return cases


def histogram_case():
    a, b = scores(21, 300, -3, 1, 0), scores(22, 200, 0, 4, 2)
    edges = np.histogram_bin_edges(np.concatenate([a, b]), bins=100)
    return dict(edges=edges.tolist(), counts=[np.histogram(s, bins=edges)[0].tolist() for s in (a, b)],
                densities=[np.histogram(s, bins=edges, density=True)[0].tolist() for s in (a, b)],
                own_edges=np.histogram(b, bins=100)[1].tolist(), own_counts=np.histogram(b, bins=100)[0].tolist())


def calibration_case():
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error
    p = probabilities(31, 401, 5)
    draws = Draws(32)
    labels = np.array([draws.bits() % 5 for _ in range(len(p))])
    case = {f"ece_{n}": float(multiclass_calibration_error(torch.tensor(p), torch.tensor(labels), num_classes=5, n_bins=n, norm="l1"))
            for n in (15, 20)}
    confidence, right = p.max(1), p.argmax(1) == labels
    parts = np.array_split(np.argsort(confidence, kind="stable"), 15)
    # array_split puts the longer parts first, N*b/15 spreads them
    order = np.concatenate(parts)
    parts = [order[len(p) * b // 15:len(p) * (b + 1) // 15] for b in range(15)]
    case["ece_adaptive"] = float(sum(abs(confidence[i].sum() - right[i].sum()) for i in parts) / len(p))
    return case


def wilson_cases():
    from scipy.stats import binomtest
    cases = []
    for hits, count in ((0, 10), (1, 10), (5, 10), (10, 10), (1, 1), (765, 1000), (9999, 10000)):
        interval = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="wilson")
        cases.append(dict(hits=hits, count=count, low=float(interval.low), high=float(interval.high)))
    return cases


kFrechet = {  # name: (reference, samples), each (seed, count, dimension, shift)
    "many": ((41, 200, 12, 0.5), (42, 150, 12, 0.7)),
    "far_from_zero": ((43, 200, 12, 1000), (44, 200, 12, 1000)),
    "few_samples": ((45, 100, 16, 0), (46, 6, 16, 0.25)),
    "few_of_both": ((47, 9, 16, 0), (48, 5, 16, 0)),
    "two": ((49, 60, 8, 0), (50, 2, 8, 0)),
}


def frechet_cases():
    from pytorch_fid.fid_score import calculate_frechet_distance
    cases = {}
    for name, (reference, samples) in kFrechet.items():
        a, b = features(*reference), features(*samples)
        c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        case = dict(reference=reference, samples=samples, mean=a.mean(0).tolist(), covariance_row=c1[-1].tolist())
        # C = X^T X / (N - 1) with X the centred rows: the roots of eig(C1 C2) are the singular values of X1 X2^T, but for the counts
        x1, x2 = a - a.mean(0), b - b.mean(0)
        trace = np.linalg.svd(x1 @ x2.T, compute_uv=False).sum() / np.sqrt((len(a) - 1) * (len(b) - 1))
        case["distance"] = float(((a.mean(0) - b.mean(0))**2).sum() + np.trace(c1) + np.trace(c2) - 2 * trace)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case["pytorch_fid"] = float(calculate_frechet_distance(a.mean(0), c1, b.mean(0), c2))
        cases[name] = case
    return cases


def inception_score_case():
    p = probabilities(51, 103, 7)
    scores_of_parts = []
    for i in range(10):
        part = p[i * 103 // 10:(i + 1) * 103 // 10]
        kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores_of_parts.append(np.exp(kl.sum(1).mean()))
    return dict(mean=float(np.mean(scores_of_parts)), deviation=float(np.std(scores_of_parts)))


def kernel_case():
    import torch
    from torchmetrics.image.kid import poly_mmd
    a, b = features(61, 40, 12, 0), features(62, 40, 12, 0.125)
    return dict(distance=float(poly_mmd(torch.tensor(a), torch.tensor(b))), itself=float(poly_mmd(torch.tensor(a), torch.tensor(a))))


def neighbours_case():
    a, b = features(71, 120, 6, 0), features(72, 90, 6, 0.5)

    def distances(x, y):
        return np.sqrt(((x[:, None] - y[None])**2).sum(2))

    def radii(x, k):
        return np.sort(distances(x, x), axis=1)[:, k]  # [0] is the image itself

    d = distances(a, b)
    a3, b3, a5 = radii(a, 3), radii(b, 3), radii(a, 5)
    return dict(precision=float((d <= a3[:, None]).any(0).mean()), recall=float((d <= b3[None]).any(1).mean()),
                density=float((d <= a5[:, None]).sum(0).mean() / 5), coverage=float((d.min(1) <= a5).mean()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    cases = dict(detection=detection_cases(), histogram=histogram_case(), calibration=calibration_case(), wilson=wilson_cases(),
                 frechet=frechet_cases(), inception_score=inception_score_case(), kernel=kernel_case(), neighbours=neighbours_case())
    with open(parser.parse_args().out, "w") as file:
        json.dump(cases, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
