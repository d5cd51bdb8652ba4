#!/usr/bin/env python3
"""How C2, mining and Tor are found on hosts that have a past. One command:

    tests/watched.py [--binary PATH] [--rounds N] [--seed N] [--keep FOLDER] [-v]

A service has watched its hosts for weeks when an attack comes; a capture of an attack begins with it. The data's own `warm.py` lays
the attacks of $FLOWVIGIL_DATASETS (default: ../shared/datasets beside the project) over benign hosts that were seen for four hours
or more; here `flowvigil detect` runs over that with its defaults, and the data's own `score.py` judges. Four tables:

    as it is          attacks over hosts with a past
    ten minutes       the same records at an aggregation interval of ten minutes, which is the default of AWS off Nitro
    placebo           benign hosts laid over other benign hosts in the same way: what is told is the price of "somebody installed
                      something new"
    by laboratory     groups found, by the laboratory that the attack comes from

Exit code 2 where there is no data.
"""
import argparse, collections, concurrent.futures, datetime, glob, gzip, json, os, pathlib, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
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


def detect(program, labels_path):
    base = labels_path[: -len(".labels.json")]
    internal = ",".join(str(network) for network in json.load(open(labels_path)).get("local_hosts") or [])
    command = [program, "detect", base + ".log.gz", "--format", "ndjson"] + (["--internal", internal] if internal else [])
    environment = {k: v for k, v in os.environ.items() if "FLOWVIGIL_" not in k}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {run.returncode}: {run.stderr.strip()[-400:]}")
    with open(base + ".ndjson", "w") as out:
        out.write(run.stdout)
    return base, [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def detect_all(program, folder):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(pool.map(lambda path: detect(program, path), sorted(glob.glob(folder + "/*.labels.json"))))


def judge(data, folder, verbose):
    run = subprocess.run([sys.executable, os.path.join(data, "score.py"), folder, folder, "-v"], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"the independent judge failed: {run.stderr}")
    said = [line for line in run.stderr.splitlines() if line.startswith(("FALSE", "MISSED"))]
    if verbose:
        print("\n".join("    " + line for line in said))
    return json.loads(run.stdout), said


def table(title, result):
    found = ", ".join(f"{threat} {count}" for threat, count in sorted(result["found"].items()))
    print(f"{title:14} found {found}; {result['tp']} true, {result['fp']} false, {result['unknown']} of unknown nature")


def by_laboratory(folder, said):
    """Groups found by where the attack comes from: warm.py notes the set in the truth."""
    laboratory = lambda name: "mta" if "-mta-" in name else name.split("-20")[0].split(":")[0]
    of, missed = collections.Counter(), collections.Counter()
    lost = {tuple(line.split(None, 2)[1:]) for line in said if line.startswith("MISSED")}
    for path in sorted(glob.glob(folder + "/*.labels.json")):
        name = os.path.basename(path)[: -len(".labels.json")]
        groups = collections.defaultdict(list)
        for row in json.load(open(path)).get("truth", []):
            groups[(row.get("set", name), row["threat"], row["actor"])].append(row)
        for (where, threat, actor), rows in groups.items():
            if all(row.get("weak") or row.get("undetectable") for row in rows):
                continue
            key = (laboratory(where.split(":")[0]), threat)
            of[key] += 1
            missed[key] += any(set_name == name and rest.startswith(f"('{threat}', '{actor}')") for set_name, rest in lost)
    for key in sorted(of):
        print(f"    {key[0]:28} {key[1]:14} {of[key] - missed[key]}/{of[key]}")


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
    data = os.environ.get("FLOWVIGIL_DATASETS") or str(ROOT.parent / "shared" / "datasets")
    if not os.path.exists(os.path.join(data, "warm.py")):
        print(f"skipped: no labelled sets in {data}; name their folder with FLOWVIGIL_DATASETS", file=sys.stderr)
        return 2
    program = o.binary or next((str(path) for path in (ROOT / "target" / p / "flowvigil" for p in ("release", "debug")) if path.exists()), None)
    if not program:
        print("build it first: cargo build --release", file=sys.stderr)
        return 2
    temporary = tempfile.TemporaryDirectory()
    keep = o.keep or temporary.name
    sets = [data, os.path.join(data, "more")]
    folder, coarse = os.path.join(keep, "laid"), os.path.join(keep, "coarse")
    lay(data, folder, BASE, ATTACKS, sets, o.rounds, o.seed)
    detect_all(program, folder)
    result, said = judge(data, folder, o.v)
    table("as it is", result)
    by_laboratory(folder, said)
    subprocess.run([sys.executable, os.path.join(data, "aggregate.py"), folder, coarse], check=True)
    detect_all(program, coarse)
    table("ten minutes", judge(data, coarse, o.v)[0])
    placebo(data, sets, keep, o.rounds, o.seed, program, o.v)
    return 0


sys.exit(main())
