#!/usr/bin/env python3
"""Our isolation forest beside scikit-learn's: AUC over many seeds, time to fit and to score.

    python3 -m venv /tmp/parity && /tmp/parity/bin/pip install scikit-learn
    /tmp/parity/bin/python tests/parity/forest.py [SEEDS]

Data come with scikit-learn: one class is the norm, a few rows of the others are the anomalies. Ends with 1 where the mean
AUCs of a set differ by more than three standard errors of that difference, and by more than .01.
"""

import io
import math
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np
from sklearn import datasets
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

ROOT = pathlib.Path(__file__).resolve().parents[2]


def one_class(data, norm, anomalies, seed=7):
    """The rows of class `norm` as the norm, `anomalies` rows of all others as anomalies."""
    random = np.random.default_rng(seed)
    inside, outside = data.data[data.target == norm], data.data[data.target != norm]
    outside = outside[random.choice(len(outside), min(anomalies, len(outside)), replace=False)]
    rows = np.vstack([inside, outside]).astype(np.float32)
    return rows, np.r_[np.zeros(len(inside)), np.ones(len(outside))]


def sets():
    yield "breast", one_class(datasets.load_breast_cancer(), 1, 20)
    yield "wine", one_class(datasets.load_wine(), 0, 8)
    yield "iris", one_class(datasets.load_iris(), 0, 6)
    yield "digits0", one_class(datasets.load_digits(), 0, 20)
    yield "digits1", one_class(datasets.load_digits(), 1, 20)
    random = np.random.default_rng(1)
    flow = np.abs(random.normal(size=(20_000, 27))) ** 1.5
    flow[-200:, :5] += random.exponential(2, size=(200, 5))
    yield "skewed27", (flow.astype(np.float32), np.r_[np.zeros(19_800), np.ones(200)])


def ours(rows, seed, binary):
    text = io.StringIO()
    np.savetxt(text, rows, delimiter=",", fmt="%.9g")
    sample = min(256, len(rows))
    run = subprocess.run([binary, "100", str(sample), str(seed)], input=text.getvalue(), capture_output=True, text=True, check=True)
    fit, score = run.stderr.split()
    return np.array(run.stdout.split(), dtype=float), float(fit), float(score)


def theirs(rows, seed):
    start = time.perf_counter()
    forest = IsolationForest(n_estimators=100, max_samples=min(256, len(rows)), random_state=seed).fit(rows)
    fit = time.perf_counter() - start
    start = time.perf_counter()
    scores = -forest.score_samples(rows)
    return scores, fit, (time.perf_counter() - start) / len(rows) * 1e9


def main():
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    subprocess.run(["cargo", "build", "--release", "--quiet", "--example", "forest_scores"], cwd=ROOT, check=True)
    binary = str(ROOT / "target/release/examples/forest_scores")
    print("| set | rows x features | AUC ours | AUC scikit-learn | gap / standard error | fit, ms | score, ns a row |")
    print("|---|---|---|---|---|---|---|")
    worst = 0
    for name, (rows, truth) in sets():
        mine, other = ([f(rows, seed) for seed in range(seeds)] for f in (lambda r, s: ours(r, s, binary), theirs))
        a, b = ([roc_auc_score(truth, scores) for scores, _, _ in runs] for runs in (mine, other))
        gap = statistics.mean(a) - statistics.mean(b)
        error = math.sqrt((statistics.variance(a) + statistics.variance(b)) / seeds)
        time_of = lambda runs, column: min(run[column] for run in runs)
        print(f"| {name} | {rows.shape[0]} x {rows.shape[1]} | {statistics.mean(a):.3f} | {statistics.mean(b):.3f} "
              f"| {gap:+.4f} / {error:.4f} | {time_of(mine, 1)*1e3:.1f} / {time_of(other, 1)*1e3:.0f} "
              f"| {time_of(mine, 2):.0f} / {time_of(other, 2):.0f} |")
        if abs(gap) > 3 * error and abs(gap) > 0.01:
            worst += 1
    sys.exit(1 if worst else 0)


if __name__ == "__main__":
    main()
