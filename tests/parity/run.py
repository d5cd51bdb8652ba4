#!/usr/bin/env python3
"""Our models beside scikit-learn's isolation forest and PyTorch's LSTM, in one run: quality, difference and speed.

    apt-get install python3-sklearn python3-torch        # or pip install scikit-learn torch
    /usr/bin/python3 tests/parity/run.py [--seeds 20]

Forest: AUC over many seeds, time to fit and to score. Data come with scikit-learn: one class is the norm, a few rows of the others
are the anomalies. LSTM: the embedded model's own weights in both, on the same windows: the largest difference of any output, and the
time of a step. Everything with one thread, the best of several passes. Without PyTorch the LSTM is left out, and that is said.

Ends with 1 where the mean AUCs of a set differ by more than three standard errors of that difference and by more than .01, or where
an output of the LSTM differs by more than 1e-5.
"""

import argparse
import io
import json
import math
import os
import pathlib
import statistics
import struct
import subprocess
import sys
import tarfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
from sklearn import datasets
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


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


def forests(seeds):
    binary = str(TARGET / "release/examples/forest_scores")
    print("forest, ours / scikit-learn")
    print("| set | rows x features | AUC | gap / standard error | fit, ms | score, ns a row | times as fast |")
    print("|---|---|---|---|---|---|---|")
    worst = 0
    for name, (rows, truth) in sets():
        mine, other = ([f(rows, seed) for seed in range(seeds)] for f in (lambda r, s: ours(r, s, binary), theirs))
        a, b = ([roc_auc_score(truth, scores) for scores, _, _ in runs] for runs in (mine, other))
        gap = statistics.mean(a) - statistics.mean(b)
        error = math.sqrt((statistics.variance(a) + statistics.variance(b)) / seeds)
        best = lambda runs, column: min(run[column] for run in runs)
        print(f"| {name} | {rows.shape[0]} x {rows.shape[1]} | {statistics.mean(a):.3f} / {statistics.mean(b):.3f} "
              f"| {gap:+.4f} / {error:.4f} | {best(mine, 1)*1e3:.1f} / {best(other, 1)*1e3:.0f} "
              f"| {best(mine, 2):.0f} / {best(other, 2):.0f} | {best(other, 2) / best(mine, 2):.1f} |", flush=True)
        worst += abs(gap) > 3 * error and abs(gap) > 0.01
    return worst


def fastest(action, times=7):
    took = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        took.append(time.perf_counter() - start)
    return min(took)


def tensors(raw):
    """The tensors of a safetensors file: 8 bytes of header length, JSON, data."""
    length, = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + at for at in entry["data_offsets"])
            yield name, np.frombuffer(raw[begin:end], dtype="<f4").reshape(entry["shape"]).copy()


def sequences(hosts=200, steps=64):
    try:
        import torch
    except ImportError:
        print("PyTorch cannot be imported: the LSTM is not compared")
        return 0
    torch.set_num_threads(1)
    with tarfile.open(ROOT / "src/ml/default.tar.gz") as archive:
        raw = archive.extractfile("lstm.safetensors").read()
    lstm, head = torch.nn.LSTM(10, 32), torch.nn.Linear(32, 16)
    for name, values in tensors(raw):
        module, name = (head, name[5:]) if name.startswith("head.") else (lstm, name)
        with torch.no_grad():
            getattr(module, name).copy_(torch.from_numpy(values))
    random = np.random.default_rng(3)
    windows = np.clip(random.normal(size=(steps, hosts, 10)) * 2, -1.5, 2.5).astype("<f4")
    # A forecast is made from the amounts of the window before and from the hour of its own.
    inputs = windows.copy()
    inputs[1:, :, :8], inputs[0, :, :8] = windows[:-1, :, :8], 0
    inputs = torch.from_numpy(inputs)
    with torch.no_grad():
        wanted = head(lstm(inputs)[0]).numpy()
        wanted[:, :, 8:] = wanted[:, :, 8:].clip(-5, 3)
        whole = fastest(lambda: head(lstm(inputs)[0])) / (hosts * steps) * 1e9
        state = (torch.zeros(1, hosts, 32), torch.zeros(1, hosts, 32))
        step = fastest(lambda: head(lstm(inputs[:1], state)[0]), 50) / hosts * 1e9
        one = (torch.zeros(1, 1, 32), torch.zeros(1, 1, 32))
        single = fastest(lambda: head(lstm(inputs[:1, :1], one)[0]), 200) * 1e9
    weights = pathlib.Path(TARGET / "parity.safetensors")
    weights.write_bytes(raw)
    binary = str(TARGET / "release/examples/lstm_steps")
    run = subprocess.run([binary, str(weights), str(hosts)], input=windows.tobytes(), capture_output=True, check=True)
    mine = np.frombuffer(run.stdout, dtype="<f4").reshape(steps, hosts, 16)
    took = float(run.stderr)
    difference = float(np.abs(mine - wanted).max())
    print(f"\nLSTM, the embedded model's weights, {hosts} hosts, {steps} steps; PyTorch {torch.__version__}")
    print(f"largest difference of any output: {difference:.1e}")
    print(f"ours, a host's step                 {took:9.0f} ns")
    for name, each in (("whole sequences of 200 hosts", whole), ("one step of 200 hosts", step), ("one step of one host", single)):
        print(f"PyTorch, {name:<28}{each:8.0f} ns, {each / took:.1f} times ours")
    return difference > 1e-5


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=20)
    o = p.parse_args()
    build = ["cargo", "build", "--release", "--quiet", "--example", "forest_scores", "--example", "lstm_steps"]
    subprocess.run(build, cwd=ROOT, check=True)
    worst = forests(o.seeds) + sequences()
    sys.exit(1 if worst else 0)


if __name__ == "__main__":
    main()
