#!/usr/bin/env python3
"""What one host-window costs: our models beside scikit-learn's forest and, where it can be imported, PyTorch's LSTM.

    python3 -m venv /tmp/parity && /tmp/parity/bin/pip install scikit-learn   # and torch, if you like
    /tmp/parity/bin/python tests/parity/speed.py [--binary PATH]

Ours is measured by `flowvigil models compare` on the windows of a simulated VPC: forest, sequence model and top3_z together, with
calibration and explanation, in batches of 200. Theirs is the bare scoring call on rows of the same width, one thread.
"""
import argparse, json, os, pathlib, subprocess, tempfile, time

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
from sklearn.ensemble import IsolationForest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BATCH = 200


def best(action, times=7):
    took = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        took.append(time.perf_counter() - start)
    return min(took)


def ours(binary):
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(ROOT, "src/ml/default.tar.gz")
        run = subprocess.run([binary, "models", "compare", "--primary", model, "--canary", model, "--simulated", "5"],
                             capture_output=True, text=True, check=True, cwd=folder)
    return json.loads(run.stdout)["primary"]["latency_p50_ms"] * 1e3 / BATCH


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--binary", default=str(ROOT / "target/release/flowvigil"))
    o = p.parse_args()
    mine = ours(o.binary)
    print(f"flowvigil, all three scorers       {mine:9.2f} us a window (median, batches of {BATCH})")
    random = np.random.default_rng(1)
    rows = np.abs(random.normal(size=(20_000, 27))).astype(np.float32)
    forest = IsolationForest(n_estimators=100, max_samples=1024, random_state=1).fit(rows)
    for name, batch in (("batches of 200", rows[:BATCH]), ("one row", rows[:1]), ("20,000 rows", rows)):
        each = best(lambda: forest.score_samples(batch)) / len(batch) * 1e6
        print(f"scikit-learn forest, {name:<14}{each:9.2f} us a row: {each / mine:.1f} times ours")
    try:
        import torch
    except ImportError:
        print("PyTorch cannot be imported: not measured")
        return
    torch.set_num_threads(1)
    lstm, head = torch.nn.LSTM(10, 32, batch_first=True), torch.nn.Linear(32, 16)
    windows = torch.randn(BATCH, 1, 10)
    state = (torch.zeros(1, BATCH, 32), torch.zeros(1, BATCH, 32))
    with torch.no_grad():
        each = best(lambda: head(lstm(windows, state)[0])) / BATCH * 1e6
        print(f"PyTorch LSTM, one step of 200 hosts {each:8.2f} us a window: {each / mine:.1f} times ours")
        one = (torch.zeros(1, 1, 32), torch.zeros(1, 1, 32))
        each = best(lambda: head(lstm(windows[:1], one)[0])) * 1e6
        print(f"PyTorch LSTM, one step of one host  {each:8.2f} us a window: {each / mine:.1f} times ours")


main()
