#!/usr/bin/env python3
"""How channels are found: on hosts that have a past, and in captures that begin with the attack. One command, some minutes:

    tests/watched.py [--binary PATH] [--rounds N] [--seed N] [--keep FOLDER] [-v]

A service has watched its hosts for weeks when an attack comes; a capture of an attack begins with it. The data's own `warm.py` lays
the attacks of $FLOWVIGIL_DATASETS (default: ../shared/datasets beside the project) over benign hosts that were seen for four hours
or more; here `flowvigil detect` runs over that, and over the captures as they are, with its defaults, and the data's own `score.py` judges:

    as it is          attacks over hosts with a past, and groups found by the laboratory that the attack comes from
    ten minutes       the same records at an aggregation interval of ten minutes, which is the default of AWS off Nitro
    placebo           benign hosts laid over other benign hosts in the same way: what is told is the price of "somebody installed
                      something new"
    cold              every capture as it is, by laboratory
    without attack    hosts without an attack by what they are, their hours with traffic, and what is told of them
    by confidence     C2 and mining, told or kept as a signal, in all of the above but the placebo: how many are true. Where a second
                      threat is named beside the first, how often that would have been the true one

Exit code 2 where there is no data.
"""
import argparse, collections, datetime, glob, gzip, json, os, subprocess, sys, tempfile

import labelled

BASE = "ctu-normal-40-day1-benign@0,ctu-normal-42-day2-benign@0,benign-ctu-sme11-ubuntu-17h@0,benign-iot23-honeypots@0"
ATTACKS = ("c2-mta-2017,c2-jstrosch-2020,mining-mta-2017,mining-ndpi-2017,tor-mta-2017,ctu-rat01-androidtester,"
           "ctu-sme11-remcos,c2-slips-periodic-capture-1")
# Whose hosts are laid over the others as a placebo, and which these are.
PLACEBOS = {
    "benign-unsw-nb15-slice": ["benign-ctu-sme11-ubuntu-17h@0", "benign-iot23-honeypots@0"],
    "ctu-normal-42-day2-benign": ["benign-ctu-sme11-ubuntu-17h@0", "benign-iot23-honeypots@0"],
    "benign-ctu-sme11-ubuntu-17h": ["ctu-normal-40-day1-benign@0", "ctu-normal-42-day2-benign@0"],
    "benign-iot23-honeypots": ["ctu-normal-40-day1-benign@0", "ctu-normal-42-day2-benign@0"],
}
# A host of a placebo is laid as what it did in so many seconds, from its first record on.
PLACEBO_SECONDS = 3 * 3600


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--binary", help="default: target/release/flowvigil, else target/debug/flowvigil")
    p.add_argument("--rounds", type=int, default=8, help="each lays every host with another attack (default 8)")
    p.add_argument("--seed", type=int, default=1, help="draws hosts and times (default 1)")
    p.add_argument("--keep", help="folder for logs and NDJSON; default: a temporary one")
    p.add_argument("-v", action="store_true", help="name every false and missed anomaly")
    return p.parse_args()


def lay(data, out, base, attacks, sets, rounds, seed):
    command = [sys.executable, os.path.join(data, "warm.py"), out, "--base", base, "--attacks", attacks, "--rounds", str(rounds),
               "--seed", str(seed), "--warm", "4", "--sets", ":".join(sets)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"warm.py failed: {run.stderr.strip()[-400:]}")


def detect_all(program, folder):
    """Runs `detect` on the sets of a folder: {path without its ending: anomalies}."""
    paths = sorted(path[: -len(".labels.json")] for path in glob.glob(folder + "/*.labels.json"))
    return {path: document["anomalies"] for path, document in labelled.detect_all(program, paths, folder).items()}


def judge(data, folder, verbose, anomalies=None):
    run = subprocess.run([sys.executable, os.path.join(data, "score.py"), folder, anomalies or folder, "-v"], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"the independent judge failed: {run.stderr}")
    said = [line for line in run.stderr.splitlines() if line.startswith(("FALSE", "MISSED"))]
    if verbose:
        print("\n".join("    " + line for line in said))
    return json.loads(run.stdout), said


def table(title, result):
    found = ", ".join(f"{threat} {count}" for threat, count in sorted(result["found"].items()))
    print(f"{title:14} found {found}; {result['tp']} true, {result['fp']} false, {result['unknown']} of unknown nature")


def missed(said):
    """The groups that the judge says are missed: (set, threat and whom)."""
    return [tuple(line.split(None, 2)[1:]) for line in said if line.startswith("MISSED")]


def laboratories(truths, said):
    for (lab, threat), (found, of) in labelled.by_laboratory(truths, missed(said)).items():
        print(f"    {lab:28} {threat:14} {found}/{of}")


def truths(folder):
    paths = sorted(glob.glob(folder + "/*.labels.json"))
    return [(os.path.basename(path)[: -len(".labels.json")], json.load(open(path))) for path in paths]


def cold(data, program, keep, verbose):
    """Every capture as it is. Gives the statements about its channels."""
    single = labelled.sets(data)
    documents = labelled.detect_all(program, [path for _, path in single], keep)
    for title, folder in (("cold", data), ("cold, more", os.path.join(data, "more"))):
        result, said = judge(data, folder, verbose, keep)
        table(title, result)
        laboratories(truths(folder), said)
    without_attack(dict(single), {name: documents[path]["anomalies"] for name, path in single})
    return [s for name, path in single if not name.endswith("-mixed") for s in statements(name, labelled.labels(path), keep)]


def without_attack(paths, anomalies):
    for kind, names in labelled.KINDS.items():
        hours, told = 0.0, collections.Counter()
        for name in (name for name in names if name in paths):
            truth = labelled.Truth(name, labelled.labels(paths[name]))
            hours += labelled.host_hours(paths[name])
            told.update(a["threat"] for a in anomalies[name] if not truth.is_unknown(a["actor"], [t["address"] for t in a["targets"]]))
        what = ", ".join(f"{count} {threat}" for threat, count in sorted(told.items())) or "nothing"
        rate = f", {1000 * sum(told.values()) / hours:.1f} in 1,000 host-hours" if told else ""
        print(f"{'without attack':14} {kind}: {what} false in {hours:.1f} host-hours{rate}")


def statements(name, known, folder):
    """What is said of channels, told or kept as a signal: (confidence, nature, told, share of the second threat, its nature)."""
    truth, told = labelled.Truth(name, known), set()
    for line in open(f"{folder}/{name}.ndjson"):
        a = json.loads(line)
        peers = [target["address"] for target in a["targets"]]
        told.update((a["actor"], peer) for peer in peers)
        if a["threat"] in labelled.PEERED:
            at = (a["actor"], peers, *(labelled.moment(a[when]) for when in ("first_seen", "last_seen")))
            other = next(iter(a.get("alternatives") or []), None)
            beside = (other["share"], truth.nature(other["threat"], *at)) if other else (0.0, None)
            yield a["confidence"], truth.nature(a["threat"], *at), True, *beside
    signals = {}
    for candidate in labelled.candidates(folder, name):
        channel = (candidate["host"], candidate["peer"])
        if candidate["signal"] and channel not in told:
            kind = truth.of_channel(candidate)
            nature = "true" if kind in labelled.PEERED else "false" if kind == "none" else "unknown"
            signals[channel] = max(signals.get(channel, (0.0, "")), (candidate["numbers"]["probability"], nature))
    yield from ((confidence, nature, False, 0.0, None) for confidence, nature in signals.values())


BANDS = [(0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.01)]


def by_confidence(said):
    said = [s for s in said if s[1] != "unknown"]
    for low, high in BANDS:
        band = [s for s in said if low <= s[0] < high]
        right, mean = sum(s[1] == "true" for s in band), sum(s[0] for s in band) / max(1, len(band))
        share = f"{right / len(band):.2f}" if band else "-"
        print(f"{'by confidence':14} {low:.1f} to {min(high, 1.0):.1f}: {len(band):3} ({sum(not s[2] for s in band)} signals), {right} true, share {share}, mean confidence {mean:.2f}")
    beside = [s for s in said if s[3] > 0]
    if beside:
        seconds = sum(s[4] == "true" for s in beside)
        print(f"{'second threat':14} {len(beside)} name one, with a share of {sum(s[3] for s in beside) / len(beside):.2f} on average; it was the true one in {seconds}")


def placebo(data, sets, out, rounds, seed, program, verbose):
    """Benign hosts as if they were attacks: their labels say where they were laid, and whatever is told there is false."""
    told, hosts, seconds = [], 0, 0
    for number, (name, bases) in enumerate(PLACEBOS.items()):
        source = next(f"{folder}/{name}" for folder in sets if os.path.exists(f"{folder}/{name}.log.gz"))
        labels = json.load(open(source + ".labels.json"))
        first = {}
        for line in gzip.open(source + ".log.gz", "rt"):
            r = line.split()
            if len(r) >= 14 and r[0].isdigit() and r[3] != "-":
                first[r[3]] = min(first.get(r[3], 1 << 60), int(r[10]))
        benign = [h.split(" ")[0] if isinstance(h, str) else h["host"] for h in labels.get("benign_hosts") or []]
        laid = [host for host in benign if host in first] or sorted(set(labels.get("local_hosts") or []) & set(first))
        folder = os.path.join(out, f"placebo-{number}")
        os.makedirs(folder, exist_ok=True)
        os.symlink(source + ".log.gz", f"{folder}/placebo-{number}.log.gz")
        truth = [{"threat": "c2_beacon", "actor": host, "target": "0.0.0.0", "first": first[host] + 600,
                  "last": first[host] + PLACEBO_SECONDS - 600, "basis": "none: a placebo"} for host in laid]
        json.dump(dict(labels, truth=truth), open(f"{folder}/placebo-{number}.labels.json", "w"))
        target = os.path.join(folder, "laid")
        lay(data, target, ",".join(bases), f"placebo-{number}", [folder] + sets, rounds, seed)
        for base, anomalies in detect_all(program, target).items():
            laid_labels = json.load(open(base + ".labels.json"))
            spans = {t["actor"]: (t["first"] - 600, t["last"] + 600) for t in laid_labels["truth"] if "basis" in t}
            hosts, seconds = hosts + len(spans), seconds + sum(b - a for a, b in spans.values())
            for anomaly in anomalies:
                first, last = (datetime.datetime.fromisoformat(anomaly[at].replace("Z", "+00:00")).timestamp() for at in ("first_seen", "last_seen"))
                begin, end = spans.get(anomaly.get("actor"), (1 << 40, 0))
                if anomaly["threat"] in ("c2_beacon", "crypto_mining", "tor") and first <= end and last >= begin:
                    told.append((name, anomaly))
    print(f"{'placebo':14} {len(told)} told of {hosts} hosts that were laid over others, {seconds / 3600:.0f} host-hours")
    if verbose or told:
        for name, anomaly in told:
            print(f"    {name}: {anomaly['threat']} {anomaly['confidence']:.2f} {anomaly['summary'][:150]}")


def main():
    o = options()
    data, program = labelled.ready(o.binary)
    temporary = tempfile.TemporaryDirectory()
    keep = o.keep or temporary.name
    sets = [data, os.path.join(data, "more")]
    folder, coarse = os.path.join(keep, "laid"), os.path.join(keep, "coarse")
    lay(data, folder, BASE, ATTACKS, sets, o.rounds, o.seed)
    detect_all(program, folder)
    result, said = judge(data, folder, o.v)
    table("as it is", result)
    laboratories(truths(folder), said)
    subprocess.run([sys.executable, os.path.join(data, "aggregate.py"), folder, coarse], check=True)
    detect_all(program, coarse)
    table("ten minutes", judge(data, coarse, o.v)[0])
    placebo(data, sets, keep, o.rounds, o.seed, program, o.v)
    said = [s for name, known in truths(folder) for s in statements(name, known, folder)]
    said += cold(data, program, os.path.join(keep, "cold"), o.v)
    by_confidence(said)
    return 0


sys.exit(main())
