#!/usr/bin/env python3
"""Measures what readers of the API cost the service: how soon it answers `/health/live`, and how much slower it detects.

    tests/load.py [--binary target/release/flowvigil] [--stored 1000000] [--slow 500] [--records 2000000]

A SQLite store is filled with `--stored` anomalies. Then `flowvigil run --once` reads a simulated log of `--records` lines three
times with its default limits: on an empty store, on the filled one, and on the filled one while

- `--slow` connections have sent half a request and say no more, and are opened again when they are closed,
- one client asks the worst queries (filters that match little or nothing) 19 times a second, just within the rate limit,
- and 95 of them are asked at once at the beginning,
- and `/health/live` is asked 20 times a second, each time on a new connection.

The probe and everything else are asked from two processes, of which the second gives way (`nice`).

What it prints: how long each reading took from the first to the last line, the quantiles of `/health/live` and of the queries, and what
was answered. Everything is on loopback. The measuring itself takes some of the machine's time, on two cores not little.
"""
import argparse, collections, http.client, json, multiprocessing, os, pathlib, signal, socket, sqlite3, subprocess, sys, tempfile, threading, time, uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent
THREATS = ["port_scan", "ddos", "c2_beacon", "crypto_mining", "behavior"]
BEGAN = 1_700_000_000
WORST = [
    "threat=tor", "severity=critical", "severity=critical&status=closed", "until=2020-01-01T00:00:00Z",
    "since=2100-01-01T00:00:00Z", "address=192.0.2.1", "actor=10.0.0.7&threat=tor", "address=10.0.0.7&status=closed",
    "threat=ddos&severity=critical&since=2100-01-01T00:00:00Z", "status=open&until=2020-01-01T00:00:00Z",
    "threat=port_scan&status=closed&since=2023-11-20T00:00:00Z&until=2023-11-21T00:00:00Z", "limit=500",
    "changed_since=0&threat=tor&status=closed", "changed_since=0&address=192.0.2.1",
]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", default=str(ROOT / "target/release/flowvigil"))
    arguments.add_argument("--stored", type=int, default=1_000_000)
    arguments.add_argument("--slow", type=int, default=500)
    arguments.add_argument("--records", type=int, default=2_000_000)
    arguments.add_argument("--keep", type=pathlib.Path, help="a folder in which the filled store and the log stay for another time")
    args = arguments.parse_args()
    args.binary = str(pathlib.Path(args.binary).resolve())
    with tempfile.TemporaryDirectory(prefix="flowvigil-load-") as folder:
        folder = pathlib.Path(folder)
        made = args.keep or folder
        made.mkdir(exist_ok=True)
        log, filled = made / f"{args.records}.log", made / f"{args.stored}.db"
        if not log.exists():
            command = [args.binary, "simulate", "--duration", "600s", "--records", str(args.records), "--hosts", "500", "--seed", "5", "-o", log]
            subprocess.run(command, check=True)
        if not filled.exists():
            fill(args.binary, filled, args.stored)
        print(f"store: {args.stored} anomalies, {filled.stat().st_size / 1e6:.0f} MB")
        alone = run(args, folder / "empty", log, folder / "empty.db", load=False)
        quiet = run(args, folder / "quiet", log, filled, load=False)
        loaded = run(args, folder / "loaded", log, filled, load=True)
        print(f"on the filled store: {quiet / alone - 1:+.1%} of time; under load: {loaded / quiet - 1:+.1%}")


def fill(binary, path, stored):
    """Puts anomalies of five threats, 2,000 actors and 90 days into a store that the program has made."""
    config = path.with_suffix(".toml")
    config.write_text(f'[publish.sqlite]\npath = "{path}"\n')
    subprocess.run([binary, "migrate", "--config", config, "--apply"], check=True, stdout=subprocess.DEVNULL)
    began = time.time()
    db = sqlite3.connect(path)
    db.execute("PRAGMA synchronous = OFF")
    now = int(time.time())
    for first in range(0, stored, 20_000):
        rows, addresses = [], []
        for n in range(first, min(first + 20_000, stored)):
            id, detected = str(uuid.UUID(int=n * 7919 + 1)), BEGAN + n * (90 * 86_400) // stored
            threat, severity, status = THREATS[n % 5], n % 3, ("closed" if n % 50 else "open")
            actor, target = f"10.0.{n % 2000 // 250}.{n % 250}", f"198.51.{n % 100}.{n % 251}"
            addresses += [(actor, detected, id, threat, severity, status), (target, detected, id, threat, severity, status)]
            rows.append((id, detected, threat, severity, status, actor, detected - 300, detected + 60, n + 1, body(id, detected, threat, severity, status, actor, target), now))
        with db:
            db.executemany("INSERT INTO anomalies (id, detected, threat, severity, status, actor, first_seen, last_seen, updates, announced, revision, body, written)"
                           " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, 1, ?, ?, ?)", rows)
            db.executemany("INSERT OR IGNORE INTO addresses VALUES (?, ?, ?, ?, ?, ?)", addresses)
    with db:
        db.execute("UPDATE marks SET value = ? WHERE name = 'revision'", (stored,))
    db.close()
    print(f"filled in {time.time() - began:.0f} s", file=sys.stderr)


def body(id, detected, threat, severity, status, actor, target):
    moment = lambda at: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    evidence = [{"tier": "statistical", "name": f"number_{n}", "value": 1022.0, "threshold": 15.0, "unit": "ports", "merge": "max"} for n in range(8)]
    stages = [{"name": f"stage_{n}", "passed": True, "reason": "none of 12 entries applies, and so on for a sentence"} for n in range(8)]
    return json.dumps({
        "anomaly_id": id, "schema": "1.0", "threat": threat, "status": status, "severity": ["low", "medium", "high"][severity], "confidence": 0.9,
        "actor": actor, "targets": [{"address": target, "ports": list(range(1, 60)), "port_count": 59}], "target_count": 1,
        "first_seen": moment(detected - 300), "last_seen": moment(detected + 60), "detection_timestamp": moment(detected), "window_seconds": 60,
        "summary": f"{actor} tried 59 ports of {target} in 5 s without success; 100 % were refused", "evidence": evidence,
        "tiers": {"statistical": {"vertical": 0.97}, "ml": None, "correlation": {}, "validation": {"stages": stages}}, "mitre": ["T1046"],
        "account_id": "123456789012", "interface_ids": ["eni-0123456789abcdef0"], "related": [], "degraded": [], "updates": 1})


def run(args, state, log, store, load):
    state.mkdir()
    environment = {**os.environ, "FLOWVIGIL__API__LISTEN": "127.0.0.1:0", "FLOWVIGIL__PUBLISH__SQLITE__PATH": str(store),
                   "FLOWVIGIL__INGEST__SNAPSHOT__LOCAL__FOLDER": str(state / "snapshots"), "FLOWVIGIL__INGEST__LOCAL__CHECKPOINT": str(state / "checkpoints"),
                   "FLOWVIGIL__TELEMETRY__LOG_FORMAT": "json"}
    began = time.time()
    service = subprocess.Popen([args.binary, "run", "--once", str(log)], env=environment, cwd=state, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    address = None
    for line in service.stderr:
        if "the API listens" in line:
            host, port = json.loads(line)["address"].rsplit(":", 1)
            address = (host, int(port))
            break
    threading.Thread(target=lambda: [None for _ in service.stderr], daemon=True).start()
    readers, stop, said = [], multiprocessing.Event(), multiprocessing.Queue()
    if load:
        # What the askers themselves cost is not the service's; only the probe is asked as soon as it is due.
        for niceness, jobs in [(0, [live]), (19, [slow, steady, burst])]:
            readers.append(multiprocessing.Process(target=read, args=(niceness, jobs, address, args, stop, said), daemon=True))
        [reader.start() for reader in readers]
    code = service.wait()
    took = time.time() - began
    stop.set()
    answers, times = collections.Counter(), collections.defaultdict(list)
    for _ in readers:
        some, spans = said.get()
        answers.update(some)
        [times[name].extend(values) for name, values in spans.items()]
    print(f"{'under load' if load else 'alone':>10}: {args.records} records in {took:.2f} s on {store.name}, exit code {code}")
    for name, values in sorted(times.items()):
        values.sort()
        of = lambda share: values[min(len(values) - 1, int(len(values) * share))] * 1000
        print(f"{'':>12}{name}: {len(values)} answers, p50 {of(.5):.1f} ms, p99 {of(.99):.1f} ms, longest {values[-1] * 1000:.1f} ms")
    if load:
        print(f"{'':>12}answers: {dict(answers)}")
    return took


def read(niceness, jobs, address, args, stop, said):
    """Does the jobs in a process of their own until it is over, and says what came of them."""
    os.nice(niceness)
    answers, times = collections.Counter(), collections.defaultdict(list)
    threads = [threading.Thread(target=job, args=(address, args, stop, answers, times), daemon=True) for job in jobs]
    [thread.start() for thread in threads]
    stop.wait()
    said.put((collections.Counter(answers), {name: list(values) for name, values in list(times.items())}))


def burst(address, args, stop, answers, times):
    for number in range(95):
        threading.Thread(target=ask, args=(address, WORST[number % len(WORST)], answers, times, "burst"), daemon=True).start()


def ask(address, query, answers, times, name):
    began = time.time()
    try:
        connection = http.client.HTTPConnection(*address, timeout=30)
        connection.request("GET", f"/v1/anomalies?{query}")
        response = connection.getresponse()
        response.read()
        answers[f"{name} {response.status}"] += 1
        times[name].append(time.time() - began)
        connection.close()
    except OSError as error:
        answers[f"{name} {type(error).__name__}"] += 1


def steady(address, args, stop, answers, times):
    number = 0
    time.sleep(2)
    while not stop.is_set():
        number += 1
        threading.Thread(target=ask, args=(address, WORST[number % (len(WORST) - 1)] + f"&limit={40 + number % 10}", answers, times, "steady"), daemon=True).start()
        time.sleep(1 / 19)


def live(address, args, stop, answers, times):
    while not stop.is_set():
        began = time.time()
        try:
            connection = http.client.HTTPConnection(*address, timeout=30)
            connection.request("GET", "/health/live")
            answers[f"live {connection.getresponse().status}"] += 1
            times["live"].append(time.time() - began)
            connection.close()
        except OSError as error:
            if not stop.is_set():
                answers[f"live {type(error).__name__}"] += 1
        time.sleep(0.05)


def slow(address, args, stop, answers, times):
    held = []
    while not stop.is_set():
        for number in range(len(held), args.slow):
            try:
                connection = socket.create_connection(address, timeout=5)
                connection.sendall(b"GET /v1/anomalies HTTP/1.1\r\nhost:")
                connection.setblocking(False)
                held.append(connection)
            except OSError:
                break
        time.sleep(0.5)
        still = []
        for connection in held:
            try:
                if connection.recv(1000):
                    still.append(connection)
                else:
                    connection.close()
            except BlockingIOError:
                still.append(connection)
            except OSError:
                connection.close()
        answers["slow connections that were closed"] += len(held) - len(still)
        held = still


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: sys.exit(1))
    main()
