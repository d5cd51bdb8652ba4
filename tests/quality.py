#!/usr/bin/env python3
"""Detection quality on labelled real traffic, judged by an independent script. One command:

    tests/quality.py [--binary PATH] [--only NAME…] [--keep FOLDER] [-v]
    tests/quality.py --simulated N [--from SEED] [--level low|medium] [--binary PATH]

Runs `flowvigil detect` with its defaults (only --internal is given, from each set's `local_hosts`) over every set of
$FLOWVIGIL_DATASETS (default: ../shared/datasets beside the project) and over `merged/`, once to NDJSON, which the data's own
`score.py` judges, and once with --truth, whose counts must be the same. Prints, by threat: groups found, weak and
undetectable ones apart; false anomalies in the benign sets with their host-hours; and mix-a beside its parts. Exit code 1 where
the two judges differ, 2 where there is no data.

With --simulated: N hours of simulated VPCs instead, each of another seed with every threat in it, judged by their own labels;
prints what was found, what was false, and how often anomalies of each confidence are true (the reliability of the confidence).
"""
import argparse, concurrent.futures, glob, json, os, pathlib, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--binary", help="default: target/release/flowvigil, else target/debug/flowvigil, built when absent")
    p.add_argument("--only", nargs="*", help="only these sets")
    p.add_argument("--keep", help="folder for the NDJSON; default: a temporary one")
    p.add_argument("--simulated", type=int, metavar="N", help="judge N simulated hours instead of the sets")
    p.add_argument("--from", dest="first", type=int, default=1000, help="the first seed (default 1000)")
    p.add_argument("--level", default="low", help="how loud the threats are (default low)")
    p.add_argument("-v", action="store_true", help="name every false and missed anomaly")
    return p.parse_args()


def binary(named):
    if named:
        return named
    for profile in ("release", "debug"):
        path = ROOT / "target" / profile / "flowvigil"
        if path.exists():
            return str(path)
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
    return str(ROOT / "target/release/flowvigil")


def detect(program, labels_path, folder):
    """One run: NDJSON for the other judge, and our own score from the same run's document."""
    name = os.path.basename(labels_path)[: -len(".labels.json")]
    log = labels_path[: -len(".labels.json")] + ".log.gz"
    labels = json.load(open(labels_path))
    internal = ",".join(labels.get("local_hosts") or [])
    command = [program, "detect", log, "--format", "json", "--truth", labels_path]
    if internal:
        command += ["--internal", internal]
    start = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True, env={k: v for k, v in os.environ.items() if "FLOWVIGIL_" not in k})
    if run.returncode != 0:
        return name, None, f"exit {run.returncode}: {run.stderr.strip()[-400:]}", 0.0
    document = json.loads(run.stdout)
    with open(os.path.join(folder, name + ".ndjson"), "w") as out:
        for anomaly in document["anomalies"]:
            out.write(json.dumps(anomaly) + "\n")
    return name, document, "", time.monotonic() - start


def judge(script, sets, folder, verbose):
    run = subprocess.run([sys.executable, script, sets, folder] + (["-v"] if verbose else []), capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"the independent judge failed: {run.stderr}")
    return json.loads(run.stdout), run.stderr


def agree(script, labels_path, document):
    """Both judges on one set alone; the differences in words."""
    name = os.path.basename(labels_path)[: -len(".labels.json")]
    with tempfile.TemporaryDirectory() as alone:
        os.symlink(labels_path, os.path.join(alone, name + ".labels.json"))
        with open(os.path.join(alone, name + ".ndjson"), "w") as out:
            for anomaly in document["anomalies"]:
                out.write(json.dumps(anomaly) + "\n")
        theirs, _ = judge(script, alone, alone, False)
    ours = document["score"]
    spell = lambda counts: {k: f"{v['found']}/{v['of']}" for k, v in sorted(counts.items())}
    found = {k: v for k, v in theirs["found"].items() if v != "0/0"}
    pairs = [(k, ours[k], theirs[k]) for k in ("anomalies", "tp", "fp", "unknown", "precision", "wrong_peer", "fp_by_threat")]
    pairs += [("found", spell(ours["found"]), found), ("weak", spell(ours["weak"]), theirs["weak"])]
    return [f"{name}: {key}: ours {a}, theirs {b}" for key, a, b in pairs if a != b]


def table(title, result):
    print(f"\n{title}: {result['sets']} sets, {result['anomalies']} anomalies: {result['tp']} true, {result['fp']} false, "
          f"{result['unknown']} of unknown nature, {result['repeat']} repeats; precision {result['precision']}, by group {result['precision_by_group']}")
    for threat in sorted(set(result["found"]) | set(result["fp_by_threat"])):
        found = result["found"].get(threat, "0/0")
        weak = f", weak or undetectable {result['weak'][threat]}" if threat in result["weak"] else ""
        rows = f", rows {result['rows'][threat]}" if threat in result["rows"] else ""
        print(f"  {threat:14} {found:>6} found{weak}{rows}, false {result['fp_by_threat'].get(threat, 0)}")


def simulated(o):
    program = binary(o.binary)
    total, tenths, hours, wrong = {}, {}, 0.0, []
    told = {"tp": 0, "fp": 0, "unknown": 0}
    for seed in range(o.first, o.first + o.simulated):
        with tempfile.TemporaryDirectory() as folder:
            log, labels = os.path.join(folder, "vpc.log"), os.path.join(folder, "vpc.labels.json")
            make = [program, "simulate", "--seed", str(seed), "--duration", "1h", "--threats", f"all:{o.level}", "--out", log, "--labels", labels]
            subprocess.run(make, check=True, capture_output=True)
            internal = ",".join(json.load(open(labels))["local_hosts"])
            run = subprocess.run([program, "detect", log, "--format", "json", "--truth", labels, "--internal", internal], capture_output=True, text=True, check=True)
        score = json.loads(run.stdout)["score"]
        for threat, found in score["found"].items():
            counts = total.setdefault(threat, [0, 0])
            counts[0], counts[1] = counts[0] + found["found"], counts[1] + found["of"]
        for tenth, counts in score["reliability"].items():
            sums = tenths.setdefault(tenth, [0, 0])
            sums[0], sums[1] = sums[0] + counts["true"], sums[1] + counts["told"]
        for name in told:
            told[name] += score[name]
        hours += score["benign_host_hours"]
        wrong += [f"seed {seed}: {line}" for line in score["false"]]
        if o.v:
            for line in score["missed"]:
                print(f"    seed {seed} missed: {line}")
    print(f"{o.simulated} simulated hours from seed {o.first}, every threat {o.level}: {told['tp']} true, {told['fp']} false, {told['unknown']} of unknown nature; "
          f"{1000 * told['fp'] / max(hours, 1e-9):.1f} false per 1,000 benign host-hours ({hours:.0f} h)")
    for threat, (found, of) in sorted(total.items()):
        print(f"  {threat:14} {found:>4} of {of} found")
    for tenth, (true, of) in sorted(tenths.items()):
        print(f"  told with confidence {tenth}: {true} of {of} true")
    for line in wrong:
        print(f"    false: {line}")
    return 0


def main():
    o = options()
    if o.simulated:
        return simulated(o)
    data = os.environ.get("FLOWVIGIL_DATASETS") or str(ROOT.parent / "shared" / "datasets")
    script = os.path.join(data, "score.py")
    sets = sorted(glob.glob(data + "/*.labels.json"))
    merged = sorted(glob.glob(data + "/merged/*.labels.json"))
    if not sets or not os.path.exists(script):
        print(f"skipped: no labelled sets in {data}; name their folder with FLOWVIGIL_DATASETS", file=sys.stderr)
        return 2
    if o.only:
        wanted = lambda path: os.path.basename(path)[: -len(".labels.json")] in o.only
        sets, merged = list(filter(wanted, sets)), list(filter(wanted, merged))
    program = binary(o.binary)
    temporary = tempfile.TemporaryDirectory()
    keep = o.keep or temporary.name
    folder, mixed = os.path.join(keep, "sets"), os.path.join(keep, "merged")
    for path in (folder, mixed):
        os.makedirs(path, exist_ok=True)
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda path: detect(program, path, folder if path in sets else mixed), sets + merged))
    differences, failures, hours = [], [], 0.0
    print(f"{'set':28} {'records':>8} {'anomalies':>9} {'true':>5} {'false':>5} {'unknown':>7} {'silences':>8} {'s':>5}  found (weak)")
    for path, (name, document, failure, seconds) in zip(sets + merged, runs):
        if document is None:
            failures.append(f"{name}: {failure}")
            continue
        score = document["score"]
        differences += agree(script, path, document)
        if name.startswith("benign-") or name.endswith("-benign"):
            hours += score["benign_host_hours"]
        spell = lambda counts: " ".join(f"{k} {v['found']}/{v['of']}" for k, v in counts.items())
        weak = f" ({spell(score['weak'])})" if score["weak"] else ""
        print(f"{name:28} {document['statistics']['records']:8} {score['anomalies']:9} {score['tp']:5} {score['fp']:5} "
              f"{score['unknown']:7} {len(document['silences']):8} {seconds:5.1f}  {spell(score['found'])}{weak}")
        if o.v:
            for word in ("missed", "false"):
                for line in score[word]:
                    print(f"    {word}: {line}")
    result, told = judge(script, data, folder, o.v)
    if not o.only:
        table("all sets", result)
        benign = sum(d["score"]["fp"] for n, d, _, _ in runs if d and (n.startswith("benign-") or n.endswith("-benign")))
        if hours:
            print(f"  benign sets: {benign} false in {hours:.1f} active host-hours ({1000 * benign / hours:.1f} per 1,000)")
        mix, _ = judge(script, os.path.join(data, "merged"), mixed, False)
        if mix["sets"]:
            table("merged", mix)
            parts = set()
            for path in merged:
                parts |= set(json.load(open(path)).get("source") or [])
            by_name = {n: d["score"] for n, d, _, _ in runs if d}
            print(f"  its parts, each alone: {sum(by_name[p]['fp'] for p in parts if p in by_name)} false")
    print(f"\n{time.monotonic() - start:.1f} s with {program}")
    if not differences and not failures:
        print("both judges agree on every set: true, false, unknown, found and weak")
    for line in failures:
        print("FAILED", line, file=sys.stderr)
    for line in differences:
        print("THE JUDGES DIFFER", line, file=sys.stderr)
    return 1 if differences or failures else 0


sys.exit(main())
