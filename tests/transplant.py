#!/usr/bin/env python3
"""Real attacks on real hosts that have a past: the windows of labelled captures, laid over hosts of benign ones.

    tests/transplant.py [--datasets FOLDER] [--model model.tar.gz] [--binary PATH] [--times 3]

Most labelled captures last minutes, so that no host in them is known when it is attacked or infected. Here each threat's records are
given to a host of a benign capture of a day: its address in place of the actor's or victim's, and a moment in the second half of the
capture, several times over. All else stays as it was captured. Then `flowvigil evaluate --truth` says by scorer how well the windows
under attack are told from the host's others, and how often the others are called rare.
"""
import argparse, gzip, ipaddress, json, os, pathlib, random, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOSTS = ("ctu-normal-40-day1-benign", "ctu-normal-42-day2-benign")
GUESTS = ("c2-jstrosch-2020", "mining-ndpi-2017", "mining-nesfit-2017", "tor-ndpi-2013", "tor-radni-2019", "scan-ndpi-nmap-synscan",
          "scan-probinglab-2019", "ddos-cic2019-webddos", "ddos-ndsec1-synflood")
LONGEST = 2 * 3600


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--datasets", default=os.environ.get("FLOWVIGIL_DATASETS") or str(ROOT.parent / "shared" / "datasets"))
    p.add_argument("--model", help="default: the embedded one")
    p.add_argument("--binary", default=str(ROOT / "target/release/flowvigil"))
    p.add_argument("--times", type=int, default=3, help="how often each attack happens")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--windows", help="where every window goes, as each scorer saw it (CSV)")
    return p.parse_args()


def read(folder, name):
    labels = json.load(open(os.path.join(folder, name + ".labels.json")))
    with gzip.open(os.path.join(folder, name + ".log.gz"), "rt") as file:
        rows = [line.split() for line in file if line[0].isdigit()]
    blocks = [ipaddress.ip_network(block) for block in labels["local_hosts"]]
    known = {}

    def ours(address):
        if address not in known:
            known[address] = any(ipaddress.ip_address(address) in block for block in blocks)
        return known[address]

    return labels, [row for row in rows if row[3] != "-"], ours


def attacks(folder):
    """(threat, the host of ours that it is about, records) by threat and host."""
    for name in GUESTS:
        labels, rows, ours = read(folder, name)
        groups = {}
        for entry in labels["truth"]:
            mine = [a for a in (entry["actor"], entry.get("target") or "*") if a != "*" and ours(a)]
            if not entry.get("undetectable") and mine:
                groups.setdefault((entry["threat"], mine[0]), []).append(entry)
        for (threat, host), entries in groups.items():
            spans = [(e["first"], e["last"], {e["actor"], e.get("target") or "*"} - {"*", host}) for e in entries]
            within = lambda row: any(f - 60 <= int(row[10]) <= l + 60 and (not peers or peers & {row[3], row[4]}) for f, l, peers in spans)
            records = [row for row in rows if host in (row[3], row[4]) and within(row)]
            if records:
                first = min(int(row[10]) for row in records)
                yield name, threat, host, [row for row in records if int(row[11]) < first + LONGEST]


def main():
    o = options()
    draw = random.Random(o.seed)
    guests = list(attacks(o.datasets))
    print(f"{len(guests)} attacks: " + ", ".join(sorted({threat for _, threat, _, _ in guests})))
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        logs, truth, blocks = [], [], set()
        for number, name in enumerate(HOSTS):
            labels, rows, ours = read(o.datasets, name)
            blocks |= set(labels["local_hosts"])
            host = max({a for row in rows for a in row[3:5] if ours(a)}, key=lambda a: sum(a in row[3:5] for row in rows))
            begin, end = min(int(row[10]) for row in rows), max(int(row[11]) for row in rows)
            busy = sorted({int(row[10]) // 300 for row in rows if host in row[3:5]})
            late = [w * 300 for w in busy if w * 300 > begin + (busy[-1] - busy[0]) * 150 and w * 300 + 1800 < end]
            taken = []
            for _, threat, old, records in guests:
                for _ in range(o.times):
                    first, last = min(int(r[10]) for r in records), max(int(r[11]) for r in records)
                    free = [at for at in late if all(at > t + 900 or at + last - first < f - 900 for f, t in taken)]
                    if not free:
                        continue
                    at = draw.choice(free)
                    taken.append((at, at + last - first))
                    for row in records:
                        copy = [host if field == old else field for field in row]
                        copy[10], copy[11] = str(int(row[10]) - first + at), str(int(row[11]) - first + at)
                        rows.append(copy)
                    truth.append({"threat": threat, "actor": host, "first": at, "last": at + last - first})
            # The captures are of other days: each keeps its own, so that hosts do not meet.
            logs += rows
        logs.sort(key=lambda row: (int(row[11]), int(row[10])))
        log = os.path.join(folder, "transplanted.log")
        with open(log, "w") as file:
            file.writelines(" ".join(row) + "\n" for row in logs)
        for threat in ["", *sorted({t["threat"] for t in truth})]:
            told = os.path.join(folder, "labels.json")
            json.dump({"truth": truth}, open(told, "w"))
            print(f"\n{threat or 'all threats'}", flush=True)
            command = [o.binary, "evaluate", "--input", log, "--truth", told, "--internal", ",".join(sorted(blocks))]
            command += ["--threat", threat] if threat else ["--windows", o.windows] if o.windows else []
            status |= subprocess.run(command + (["--model", o.model] if o.model else [])).returncode
    return status


sys.exit(main())
