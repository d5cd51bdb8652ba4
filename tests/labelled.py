"""Labelled sets: where they lie, which laboratory each comes from, running flowvigil on one, and the truth about what it says.

Shared by tests/watched.py and tests/learn_channels.py. Standard library alone.
"""
import collections, concurrent.futures, datetime, glob, gzip, ipaddress, json, os, pathlib, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The laboratory of a set, by what its name contains; the first that fits counts.
LABORATORIES = [
    ("-mta-", "mta"), ("ctu-normal", "ctu-normal"), ("sme11", "sme11"), ("ctu-botnet", "ctu-malware"), ("ctu-rat", "ctu-malware"),
    ("jstrosch", "jstrosch"), ("slips", "slips"), ("nesfit", "nesfit"), ("rita", "rita"), ("probinglab", "probinglab"),
    ("stopddos", "stopddos"), ("ndsec", "ndsec"), ("cic20", "cic"), ("radni", "radni"), ("iot23", "iot23"), ("evilfingers", "evilfingers"),
    ("unsw", "unsw"), ("ndpi", "ndpi"),
]

# Sets of hosts without an attack, by what their hosts are.
KINDS = {
    "servers": ["benign-unsw-nb15-slice"],
    "offices and homes": ["benign-ndpi-apps", "ctu-normal-40-day1-benign", "ctu-normal-42-day2-benign", "benign-ctu-sme11-ubuntu-17h",
                          "benign-ctu-normal7-bittorrent"],
    "smart devices": ["benign-iot23-honeypots"],
}

# Threats that name one peer: the right host with another peer is no find.
PEERED = ("c2_beacon", "crypto_mining")
SLACK = 600


def laboratory(name):
    return next((lab for part, lab in LABORATORIES if part in name), name)


def folder():
    """The folder of the labelled sets, or None."""
    data = os.environ.get("FLOWVIGIL_DATASETS") or str(ROOT.parent / "shared" / "datasets")
    return data if os.path.exists(os.path.join(data, "score.py")) else None


def program(given):
    """The binary that was named, or the one that was built."""
    built = (ROOT / "target" / profile / "flowvigil" for profile in ("release", "fast/debug", "debug"))
    return given or next((str(path) for path in built if path.exists()), None)


def ready(binary):
    """The folder of the labelled sets and the program; says what is missing, and ends with 2, where one of them is."""
    data, found = folder(), program(binary)
    if not data or not found:
        print("skipped: " + ("build it first" if data else "no labelled sets; name their folder with FLOWVIGIL_DATASETS"), file=sys.stderr)
        sys.exit(2)
    return data, found


def sets(data):
    """Single captures: (name, path without its ending)."""
    paths = sorted(glob.glob(data + "/*.labels.json")) + sorted(glob.glob(data + "/more/*.labels.json"))
    return [(os.path.basename(path)[: -len(".labels.json")], path[: -len(".labels.json")]) for path in paths]


def labels(path):
    return json.load(open(path + ".labels.json"))


def detect(binary, path, out, internal=None):
    """Runs `detect` on one set. Gives its document; beside it in `out` lie NAME.ndjson and NAME.candidates."""
    name = os.path.basename(path)
    if internal is None:
        internal = labels(path).get("local_hosts") or []
    command = [binary, "detect", path + ".log.gz", "--format", "json", "--candidates", f"{out}/{name}.candidates"]
    command += ["--internal", ",".join(map(str, internal))] if internal else []
    environment = {k: v for k, v in os.environ.items() if "FLOWVIGIL_" not in k}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {run.returncode}: {run.stderr.strip()[-400:]}")
    document = json.loads(run.stdout)
    with open(f"{out}/{name}.ndjson", "w") as lines:
        lines.writelines(json.dumps(anomaly) + "\n" for anomaly in document["anomalies"])
    return document


def detect_all(binary, paths, out):
    """The same of many sets, two at a time: {path: document}."""
    os.makedirs(out, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(paths, pool.map(lambda path: detect(binary, path, out), paths)))


def candidates(out, name):
    with open(f"{out}/{name}.candidates") as lines:
        return [json.loads(line) for line in lines]


def moment(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def listed(address, entries):
    for entry in entries or []:
        if isinstance(entry, dict):
            entry = entry.get("host", entry.get("actor"))
        try:
            if ipaddress.ip_address(address) in ipaddress.ip_network(str(entry).split(" ")[0]):
                return True
        except ValueError:
            pass
    return False


class Truth:
    """What is known of a set."""

    def __init__(self, name, known):
        self.name, self.known = name, known
        self.entries = known.get("truth") or []

    def nature(self, threat, host, peers, first, last):
        """`true`, `false` or `unknown` of a statement that a host does something with peers."""
        wrong = False
        for entry in self.entries:
            if first > entry["last"] + SLACK or last < entry["first"] - SLACK or host != entry["actor"]:
                continue
            if threat != entry["threat"] and threat not in entry.get("also", []):
                continue
            if threat not in PEERED or entry.get("target") in peers:
                return "true"
        return "unknown" if self.is_unknown(host, peers) else "false"

    def is_unknown(self, host, peers=()):
        known = self.known
        everybody = [host, *peers] if self.name.startswith("benign-") else [host]
        if listed(host, known.get("infected_hosts")) or listed(host, known.get("ambiguous")) or listed(host, known.get("derived")):
            return True
        doubtful = known.get("unlabelled") or self.name.endswith("-mixed")
        return bool(doubtful and not any(listed(who, known.get("benign_hosts")) for who in everybody))

    def of_channel(self, candidate):
        """What a channel is: the threat of the truth that names host and peer, `none` on a host without an attack, `unknown`."""
        first, last = moment(candidate["first_seen"]), moment(candidate["last_seen"])
        on_host = [entry for entry in self.entries if entry["actor"] == candidate["host"]]
        for entry in on_host:
            if entry.get("target") == candidate["peer"] and first <= entry["last"] + SLACK and last >= entry["first"] - SLACK:
                return "unknown" if entry.get("undetectable") else entry["threat"]
        return "unknown" if on_host or self.is_unknown(candidate["host"], [candidate["peer"]]) else "none"


def host_hours(path):
    """Hours in which the hosts without an attack were active, as five-minute windows with a record of theirs."""
    known = labels(path)
    windows = set()
    nature = {}
    for line in gzip.open(path + ".log.gz", "rt"):
        record = line.split()
        if len(record) < 14 or not record[0].isdigit() or record[3] == "-":
            continue
        for host in record[3:5]:
            if host not in nature:
                nature[host] = listed(host, known.get("benign_hosts")) and listed(host, known.get("local_hosts"))
            if nature[host]:
                windows.add((host, int(record[10]) // 300))
    return len(windows) / 12


def by_laboratory(truths, missed):
    """Groups of truth found and in all, by laboratory and threat. `missed` are the groups that the judge says are missed."""
    of, found = collections.Counter(), collections.Counter()
    for name, known in truths:
        groups = collections.defaultdict(list)
        for row in known.get("truth", []):
            whom = row.get("target") if row["threat"] == "ddos" else row["actor"]
            groups[(row.get("set", name), row["threat"], whom)].append(row)
        for (where, threat, whom), rows in groups.items():
            if all(row.get("weak") or row.get("undetectable") for row in rows):
                continue
            key = (laboratory(where.split(":")[0]), threat)
            of[key] += 1
            found[key] += not any(at == name and rest.startswith(f"('{threat}', '{whom}')") for at, rest in missed)
    return {key: (found[key], of[key]) for key in sorted(of)}
