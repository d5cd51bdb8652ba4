#!/usr/bin/env python3
"""Learns the weights of `out_of_character` from labelled captures, and says what they are worth. One command:

    tests/learn_channels.py [--binary PATH] [--log LOG.gz --internal CIDR,…] [--keep FOLDER]

`flowvigil detect --candidates` writes every look at a channel with its numbers. Here these are the engine's own numbers of every
single capture in $FLOWVIGIL_DATASETS (default: ../shared/datasets beside the project). A channel of the truth is an attack, every
channel of a host without one is not, and what is unknown is left out. With --log the channels of a flow log of one's own, taken to
be without an attack, are added to the latter.

    weights    a logistic regression on standardised numbers, L2 with C = 0.1, both classes of equal weight, each channel counted once
               over all its looks; made into nats by a second one (Platt) over scores by weights that had not seen the laboratory.
               Beside them stand those of src/statistical/channel.rs.
    left out   for each laboratory: how many of its attacks stand above every candidate without an attack, and at how many of both
               the evidence reaches prior_against, by weights and scale learned without that laboratory, and by those of the source
    nature     the same for implant or miner, over channels of the truth at their last look, beside src/statistical/channel/nature.rs

Only the standard library is needed. Exit code 2 where there is no data.
"""
import argparse, collections, math, os, re, sys, tempfile

import labelled

# The numbers, by their names in the evidence, and whether they are weighed by the logarithm of one more.
NUMBERS = [("others_on_port", True), ("share_of_sessions", False), ("timing_per_call", False), ("median_received", True),
           ("median_sent", True), ("unregistered_port", False)]
C = 0.1
# What is refused by these is no candidate, whatever its evidence.
GATES = ("peers", "clients")


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--binary", help="default: that of target/release, else of target/debug")
    p.add_argument("--log", help="a flow log of one's own, without an attack")
    p.add_argument("--internal", help="its networks, as for detect")
    p.add_argument("--keep", help="folder for what detect wrote; default: a temporary one")
    return p.parse_args()


def values(candidate):
    numbers = candidate["numbers"]
    return [math.log1p(numbers[name]) if logarithmic else numbers[name] for name, logarithmic in NUMBERS]


# What tells an implant from a miner, by the names in src/statistical/channel/nature.rs.
NATURE = ["CARRIED", "PUSHED", "REPORTS"]


def shape(candidate):
    numbers = candidate["numbers"]
    return [numbers["carried_by_longest"], numbers["pushed"], float(numbers["sent_to_received"] > 2)]


class Channel:
    """One channel with all its looks."""

    def __init__(self, where, attack, looks):
        self.where, self.attack, self.looks = where, attack, looks

    def best(self, score):
        return max(score(look) for look in self.looks)


def channels(where, found, nature):
    """Channels of one set, by host, peer and service."""
    looks, natures = collections.defaultdict(list), {}
    for candidate in found:
        key = tuple(candidate[name] for name in ("host", "peer", "port", "protocol"))
        kind = nature(candidate)
        if kind == "unknown" or not all(name in candidate["numbers"] for name, _ in NUMBERS) or any(gate in candidate["fails"] for gate in GATES):
            continue
        # A later look at a channel of the truth may be outside the truth's time.
        natures[key] = natures.get(key, False) or kind in labelled.PEERED
        if kind in labelled.PEERED or kind == "none":
            looks[key].append(values(candidate))
    return [Channel(where, natures[key], rows) for key, rows in sorted(looks.items())]


def solve(matrix, vector):
    """Gauss, with the largest pivot."""
    n = len(vector)
    rows = [list(row) + [value] for row, value in zip(matrix, vector)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(i + 1, n):
            factor = rows[r][i] / rows[i][i]
            for c in range(i, n + 1):
                rows[r][c] -= factor * rows[i][c]
    out = [0.0] * n
    for i in reversed(range(n)):
        out[i] = (rows[i][n] - sum(rows[i][c] * out[c] for c in range(i + 1, n))) / rows[i][i]
    return out


def logistic(rows, penalty):
    """Weights of (numbers, attack, weight) rows, the intercept last; Newton's method. The penalty is not on the intercept."""
    n = len(rows[0][0]) + 1
    weights = [0.0] * n
    for _ in range(50):
        gradient = [penalty * w for w in weights[:-1]] + [0.0]
        hessian = [[(penalty if i < n - 1 else 1e-9) if i == j else 0.0 for j in range(n)] for i in range(n)]
        for x, attack, weight in rows:
            x = (*x, 1.0)
            z = sum(w * v for w, v in zip(weights, x))
            p = 1 / (1 + math.exp(-max(-30.0, min(30.0, z))))
            slope, curve = weight * (p - attack), weight * p * (1 - p)
            for i in range(n):
                gradient[i] += slope * x[i]
                scaled = curve * x[i]
                for j in range(i + 1):
                    hessian[i][j] += scaled * x[j]
        for i in range(n):
            for j in range(i):
                hessian[j][i] = hessian[i][j]
        step = solve(hessian, gradient)
        weights = [w - s for w, s in zip(weights, step)]
        if max(map(abs, step)) < 1e-8:
            break
    return weights


def balanced(known):
    """(numbers, attack, weight) of every look: a channel counts once, and both classes count alike."""
    attacks = sum(c.attack for c in known)
    share = {True: len(known) / (2 * attacks), False: len(known) / (2 * (len(known) - attacks))}
    return [(look, c.attack, share[c.attack] / len(c.looks)) for c in known for look in c.looks]


def learn(known):
    """A score: weights for each unit of the numbers' scales, the intercept last."""
    rows = balanced(known)
    total = sum(w for _, _, w in rows)
    n = len(rows[0][0])
    means = [sum(x[i] * w for x, _, w in rows) / total for i in range(n)]
    deviations = [math.sqrt(sum((x[i] - means[i]) ** 2 * w for x, _, w in rows) / total) or 1.0 for i in range(n)]
    standard = [([(v - m) / d for v, m, d in zip(x, means, deviations)], a, w) for x, a, w in rows]
    weights = logistic(standard, 1 / C)
    raw = [w / d for w, d in zip(weights, deviations)]
    return raw + [weights[-1] - sum(w * m for w, m in zip(raw, means))]


def score(weights, look):
    return sum(w * v for w, v in zip(weights, look)) + weights[-1]


def left_out_scores(known):
    """Each laboratory's channels beside the weights that were learned without it."""
    by_lab = {}
    for lab in sorted({c.where for c in known}):
        rest = [c for c in known if c.where != lab]
        by_lab[lab] = learn(rest)
    return by_lab


def scale(known, by_lab):
    """Platt: slope and intercept that make such a score into nats, both classes of equal weight."""
    attacks = sum(c.attack for c in known)
    share = {True: 0.5 / max(1, attacks), False: 0.5 / max(1, len(known) - attacks)}
    rows = []
    for c in known:
        best = c.best(lambda look: score(by_lab[c.where], look))
        rows.append(([best], c.attack, share[c.attack] * len(known)))
    return logistic(rows, 1e-6)


def in_nats(weights, platt):
    slope, shift = platt
    return [slope * w for w in weights[:-1]] + [slope * weights[-1] + shift]


def natures(where, found, nature):
    """Channels of the truth at their last look; an attack is a miner here."""
    last = {}
    for candidate in found:
        kind = nature(candidate)
        if kind in labelled.PEERED and candidate["protocol"] == 6 and "pushed" in candidate["numbers"]:
            last[tuple(candidate[name] for name in ("host", "peer", "port"))] = (kind, candidate)
    return [Channel(where, kind == "crypto_mining", [shape(candidate)]) for _, (kind, candidate) in sorted(last.items())]


def report_nature(known):
    miners = sum(c.attack for c in known)
    by_lab = {}
    for lab in sorted({c.where for c in known}):
        rest = [c for c in known if c.where != lab]
        if len({c.attack for c in rest}) == 2:
            by_lab[lab] = learn(rest)
    judged = [c for c in known if c.where in by_lab]
    learned = in_nats(learn(known), scale(judged, by_lab))
    text = (labelled.ROOT / "src/statistical/channel/nature.rs").read_text()
    source = [float(re.search(rf"^const {name}: f64 = (-?[\d.]+);", text, re.M).group(1)) for name in [*NATURE, "USUAL"]]
    print(f"\nimplant or miner: {miners} channels of miners and {len(known) - miners} of implants")
    print(f"{'nats a unit':20} {'learned':>9} {'source':>9}")
    for name, new, old in zip([*NATURE, "USUAL"], learned, source):
        print(f"{name.lower():20} {new:9.3f} {old:9.3f}")
    for kind, name in ((True, "miners"), (False, "implants")):
        ours = [c for c in judged if c.attack == kind]
        sides = [sum((score(weights(c), c.looks[0]) > 0) == kind for c in ours) for weights in (lambda c: by_lab[c.where], lambda c: source)]
        print(f"{name} on their own side: {sides[0]} of {len(ours)} left out, {sides[1]} by the source")


def of_source():
    """Weights of src/statistical/channel.rs: for each unit, the intercept last, and the usual values."""
    text = open(labelled.ROOT / "src/statistical/channel.rs").read()
    usual = float(re.search(r"const USUAL: f64 = (-?[\d.]+);", text).group(1))
    weights, at = [], []
    for name, _ in NUMBERS:
        term = text[text.index(f'name: "{name}"'):]
        weights.append(float(re.search(r"weight: (-?[\d.]+)", term).group(1)))
        at.append(float(re.search(r"usual: (-?[\d.]+)", term).group(1)))
    return weights + [usual - sum(w * u for w, u in zip(weights, at))], at


def prior():
    text = (labelled.ROOT / "src/defaults.toml").read_text()
    section = text[text.index("[statistical.channel]"):]
    return tuple(float(re.search(rf"^{name} = ([\d.]+)", section, re.M).group(1)) for name in ("prior_against", "evidence_max"))


def area(attacks, others):
    """Area under the curve: how often an attack stands above another candidate."""
    pairs = [(a > o) + 0.5 * (a == o) for a in attacks for o in others]
    return sum(pairs) / len(pairs) if pairs else float("nan")


def main():
    o = options()
    data, binary = labelled.ready(o.binary)
    temporary = tempfile.TemporaryDirectory()
    keep = o.keep or temporary.name
    everything = dict(labelled.sets(data))
    labelled.detect_all(binary, list(everything.values()), keep)
    known, either = [], []
    for name, path in everything.items():
        truth = labelled.Truth(name, labelled.labels(path))
        # A set X-mixed holds all flows of its twin X-benign.
        if not name.endswith("-mixed"):
            found = labelled.candidates(keep, name)
            known += channels(labelled.laboratory(name), found, truth.of_channel)
            either += natures(labelled.laboratory(name), found, truth.of_channel)
    if o.log:
        path = o.log.removesuffix(".log.gz")
        labelled.detect(binary, path, keep, (o.internal or "").split(",") if o.internal else [])
        known += channels("own log", labelled.candidates(keep, os.path.basename(path)), lambda _: "none")
    attacks = sum(c.attack for c in known)
    looks = sum(len(c.looks) for c in known)
    print(f"{attacks} channels of attacks and {len(known) - attacks} without, {looks} looks, {len({c.where for c in known})} laboratories\n")
    report(known)
    report_nature(either)
    return 0


def report(known):
    by_lab = left_out_scores(known)
    learned = in_nats(learn(known), scale(known, by_lab))
    source, at = of_source()
    print(f"{'nats a unit':20} {'learned':>9} {'source':>9}")
    for (name, _), new, old in zip(NUMBERS, learned, source):
        print(f"{name:20} {new:9.3f} {old:9.3f}")
    usual = learned[-1] + sum(w * u for w, u in zip(learned, at))
    print(f"{'at usual values':20} {usual:9.2f} {source[-1] + sum(w * u for w, u in zip(source, at)):9.2f}\n")
    against, evidence_max = prior()
    print(f"{'left out':12} {'attacks':>7} {'others':>6} | {'above all':>9} {'area':>5} {'reached':>8} {'others':>6} | by the source's weights (which have seen all)")
    sums = collections.Counter()
    for lab in sorted(by_lab):
        rest = [c for c in known if c.where != lab]
        # The scale is learned without the laboratory as well.
        inner = in_nats(by_lab[lab], scale(rest, {other: learn([c for c in rest if c.where != other]) for other in {c.where for c in rest}}))
        line = []
        for weights in (inner, source):
            nats = {id(c): min(c.best(lambda look: score(weights, look)), evidence_max) for c in known}
            own, others = [nats[id(c)] for c in known if c.attack and c.where == lab], [nats[id(c)] for c in known if not c.attack]
            here = [nats[id(c)] for c in known if not c.attack and c.where == lab]
            above, reached, false = sum(n > max(others) for n in own), sum(n >= against for n in own), sum(n >= against for n in here)
            line.append((above, area(own, others), reached, false))
        of = sum(c.attack and c.where == lab for c in known)
        print(f"{lab:12} {of:7} {len(here):6} | " + " | ".join(f"{a:9} {u:5.2f} {r:8} {f:6}" for a, u, r, f in line))
        for n, (a, _, r, f) in enumerate(line):
            sums.update({(n, "above"): a, (n, "reached"): r, (n, "false"): f})
    attacks = sum(c.attack for c in known)
    print(f"{'all':12} {attacks:7} {len(known) - attacks:6} | " +
          " | ".join(f"{sums[(n, 'above')]:9} {'':5} {sums[(n, 'reached')]:8} {sums[(n, 'false')]:6}" for n in (0, 1)))


if __name__ == "__main__":
    sys.exit(main())
