#!/usr/bin/env python3
"""Measures how long an anomaly takes from the stream to the bus, and how fast a task catches up after a stop.

    tests/run --list                                        once: installs what the servers need
    tests/latency.py [--binary target/release/flowvigil] [--rate 50000] [--seconds 60] [--stop 600 --stop-rate 5000]

*Latency.* The log of a simulated VPC with `--rate` lines in each of its seconds is put on a local Kinesis stream as it would
happen (one second in a second), while `flowvigil run` reads it with its defaults, records in DynamoDB and announces on
EventBridge, whose rule puts every event on a queue. Into the log comes a scan of 1,000 ports in three seconds by another
outsider in every second, so that there are enough anomalies for a p99. The latency of one is the time from the arrival in the
stream of the last line that has its actor and is not later than the `last_seen` it was told with, to its arrival in the queue.
Nothing here waits for a window to close: that would be up to three minutes of event time (`window` and `lateness`) more.

*Lag.* Then the task is stopped; what comes in `--stop` seconds at `--stop-rate` lines a second is put on the stream, and
the task is started: how long it takes until it has read everything, how far that is from real time, and how much of it is the
start. Kinesis hands out 2 MiB a second of a shard and the reader keeps to that, so that shards that are written to a tenth of
their limit (1 MiB a second) can be caught up with twenty times as fast, and fuller ones cannot.
"""
import argparse, bisect, collections, json, os, pathlib, signal, subprocess, sys, tempfile, time, urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCAN_PORTS, SCAN_SECONDS = 1000, 3


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", default=str(ROOT / "target/release/flowvigil"))
    arguments.add_argument("--rate", type=int, default=50_000, help="lines a second (default 50000)")
    arguments.add_argument("--seconds", type=int, default=60, help="how long lines are put on the stream (default 60)")
    arguments.add_argument("--stop", type=int, default=600, help="for how long the task is stopped, s (default 600)")
    arguments.add_argument("--stop-rate", type=int, default=5_000, help="lines a second meanwhile (default 5000)")
    arguments.add_argument("--shards", type=int, default=16, help="of the stream (default 16: the fullest gets 0.7 MB/s of 5.7)")
    arguments.add_argument("--hosts", type=int, default=1500, help="of the VPC (default 1500); of few, one is most of the traffic")
    arguments.add_argument("--fan-out", action="store_true", help="by enhanced fan-out instead of polling")
    args = arguments.parse_args()
    if "FLOWVIGIL_LATENCY_INSIDE" not in os.environ:
        # The servers are started and stopped by the shell functions that tests/run uses.
        script = 'set -e; tools=tests/.tools; started=(); trap \'kill "${started[@]}" 2>/dev/null\' EXIT; ' \
                 'export PATH="$PWD/$tools/bin:$PWD/$tools/venv/bin:$PATH"; tools=$PWD/$tools; . tests/servers.sh; start_servers; ' \
                 'FLOWVIGIL_LATENCY_INSIDE=1 "$tools/venv/bin/python" tests/latency.py "$@"'
        sys.exit(subprocess.call(["bash", "-c", script, "latency", *sys.argv[1:]], cwd=ROOT))
    with tempfile.TemporaryDirectory(prefix="flowvigil-latency-") as folder:
        Run(args, pathlib.Path(folder)).measure()


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def scanner(number):
    return f"198.18.{number // 250}.{number % 250 + 1}"


def make_log(binary, path, seconds, rate, hosts, scans):
    """A log of so many seconds with so many lines in each; with a scan beginning in each, if wished. How many are records."""
    raw = path.with_suffix(".raw")
    command = [binary, "simulate", "--duration", f"{seconds}s", "--records", str(seconds * rate), "--hosts", str(hosts), "--no-header", "--seed", "5"]
    subprocess.run([*command, "-o", raw], check=True)
    first, due = None, collections.defaultdict(list)
    with open(raw) as lines, open(path, "w") as log:
        now = 0
        for line in lines:
            fields = line.split(" ")
            end = int(fields[11])
            if scans and first is None and fields[4].startswith("10.") and fields[12] == "ACCEPT":
                first = now = end
                account, interface, target = fields[1], fields[2], fields[4]
                for scan in range(max(0, seconds - 2 * SCAN_SECONDS)):
                    for port in range(SCAN_PORTS):
                        at = first + 2 + scan + port * SCAN_SECONDS // SCAN_PORTS
                        due[at].append(f"2 {account} {interface} {scanner(scan)} {target} {40000 + port} {port + 1} 6 1 40 {at} {at} REJECT OK\n")
            while first is not None and now < end:
                now += 1
                log.writelines(due.pop(now, []))
            log.write(line)
        for late in due.values():
            log.writelines(late)
    raw.unlink()
    with open(path) as lines:
        return sum(line.endswith(" OK\n") for line in lines)


class Run:
    def __init__(self, args, folder):
        import boto3
        from botocore.config import Config

        self.args, self.folder, self.name = args, folder, f"latency-{os.getpid()}"
        client = lambda service, url: boto3.client(service, region_name=os.environ["AWS_REGION"], endpoint_url=os.environ[url],
                                                   config=Config(retries={"max_attempts": 5}))
        self.kinesis, self.sqs = client("kinesis", "AWS_ENDPOINT_URL_KINESIS"), client("sqs", "AWS_ENDPOINT_URL")
        self.leases = client("dynamodb", "AWS_ENDPOINT_URL")
        self.kinesis.create_stream(StreamName=self.name, ShardCount=args.shards)
        self.queue = self.sqs.create_queue(QueueName=self.name)["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        events = client("events", "AWS_ENDPOINT_URL")
        events.create_event_bus(Name=self.name)
        events.put_rule(Name=self.name, EventBusName=self.name, EventPattern='{"source":["anomaly-detection-service"]}')
        events.put_targets(Rule=self.name, EventBusName=self.name, Targets=[{"Id": "queue", "Arn": arn}])
        import socket
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = folder / "flowvigil.toml"
        config.write_text(f"""
[ingest.kinesis]
stream = "{self.name}"
application = "{self.name}-leases"
# Kinesis answers with 10 MiB at most; the server here does not, and a record of replay is 11 KB.
records_max = 900
{'fan_out = "latency"' if args.fan_out else ''}
[ingest.snapshot.local]
folder = "{folder}/snapshots"
[publish.dynamodb]
table = "{self.name}"
models_table = "{self.name}-models"
[publish.eventbridge]
bus = "{self.name}"
[api]
listen = "127.0.0.1:{self.port}"
""")
        self.environment = {**os.environ, "FLOWVIGIL_CONFIG": str(config)}
        subprocess.run([args.binary, "migrate", "--apply"], env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def measure(self):
        args = self.args
        records = make_log(args.binary, self.folder / "vpc.log", args.seconds, args.rate, args.hosts, scans=True)
        running = self.start()
        time.sleep(1)  # for the table
        while sum("leaseOwner" in row for row in self.leases.scan(TableName=f"{self.name}-leases")["Items"]) < args.shards:
            time.sleep(0.1)
        time.sleep(2)
        begun, busy = time.time(), shares(running.pid)
        feeding = self.replay("vpc.log", speed=1)
        heard = {}
        quiet = None
        while quiet is None or time.time() < quiet:
            if quiet is None and feeding.poll() is not None:
                fed, quiet = time.time() - begun, time.time() + 10
            self.listen(heard)
            time.sleep(0.05)
        used = {name: (seconds - busy[name]) / (time.time() - begun) for name, seconds in shares(running.pid).items()}
        inside = self.histogram("flowvigil_processing_seconds")
        values = self.latencies(heard)
        share = lambda p: f"{percentile(values, p):.2f} s"
        print(f"{records} records in {fed:.1f} s ({records / fed:.0f}/s) over {args.shards} shards, {self.fullest / fed / 1e6:.2f} MB/s in the fullest, "
              f"{'pushed' if args.fan_out else 'polled'}; cores used: " + ", ".join(f"{name} {share:.2f}" for name, share in used.items()))
        if values:
            print(f"{len(values)} of {args.seconds - 2 * SCAN_SECONDS} scans told: p50 {share(.5)}  p95 {share(.95)}  p99 {share(.99)}  most {max(values):.2f} s")
        print("of it in the service, from a read to the end of delivery, of all batches: " + "  ".join(f"p{p * 100:.0f} below {inside(p)} s" for p in (.5, .95, .99)))

        self.stop(running)
        records = make_log(args.binary, self.folder / "missed.log", args.stop, args.stop_rate, args.hosts, scans=False)
        self.replay("missed.log", speed=0).wait()
        begun = time.time()
        running = self.start()
        reading = None
        while (read := self.metric("flowvigil_records_total")) < records:
            if reading is None and read > 0:
                reading = time.time()
            time.sleep(0.2)
            if running.poll() is not None or time.time() > begun + args.stop:
                sys.exit(f"not caught up: {read} of {records} records")
        took = time.time() - begun
        self.stop(running)
        print(f"after a stop of {args.stop} s at {args.stop_rate} lines/s: {records} records read in {took:.1f} s, {reading - begun:.1f} s of it "
              f"until the first: {records / took:.0f}/s, real time x{args.stop / took:.0f}")

    def start(self):
        log = open(self.folder / "log", "a")
        return subprocess.Popen([self.args.binary, "run"], env=self.environment, stdout=subprocess.DEVNULL, stderr=log)

    def stop(self, running):
        running.send_signal(signal.SIGTERM)
        if running.wait(60) != 0:
            sys.exit("the service did not stop in time; its log says:\n" + "".join(open(self.folder / "log").readlines()[-20:]))

    def replay(self, log, speed):
        command = [self.args.binary, "replay", self.folder / log, "--to", "kinesis", "--speed", str(speed)]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL)

    def metric(self, name):
        """The sum of a metric over its labels."""
        try:
            text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5).read().decode()
        except OSError:
            return 0
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))

    def histogram(self, name):
        """From a share to the bound of the bucket that it lies in."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5).read().decode()
        upto = collections.Counter()
        for line in text.splitlines():
            if line.startswith(name + "_bucket{"):
                upto[float(line.split('le="')[1].split('"')[0])] += float(line.rsplit(" ", 1)[1])
        return lambda share: next(bound for bound in sorted(upto) if upto[bound] >= share * upto[float("inf")])

    def listen(self, heard):
        for message in self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10, WaitTimeSeconds=0).get("Messages", []):
            at = time.time()
            event = json.loads(message["Body"])
            self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
            if event["detail-type"] == "Anomaly Detected":
                heard.setdefault(event["detail"]["anomaly_id"], (at, event["detail"]))

    def latencies(self, heard):
        """Of the scans: when the lines of each scanner arrived in the stream, by event time, against when it was told."""
        from datetime import datetime
        arrivals, self.fullest = collections.defaultdict(list), 0
        for shard in self.kinesis.list_shards(StreamName=self.name)["Shards"]:
            iterator = self.kinesis.get_shard_iterator(StreamName=self.name, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON")["ShardIterator"]
            size = 0
            while True:
                answer = self.kinesis.get_records(ShardIterator=iterator, Limit=1000)
                if not answer["Records"]:
                    break
                iterator = answer["NextShardIterator"]
                for record in answer["Records"]:
                    at = record["ApproximateArrivalTimestamp"].timestamp()
                    size += len(record["Data"])
                    for line in record["Data"].split(b"\n"):
                        if b" 198.18." in line:
                            fields = line.split(b" ")
                            arrivals[fields[3].decode()].append((int(fields[11]), at))
            self.fullest = max(self.fullest, size)
        values = []
        for at, anomaly in heard.values():
            known = sorted(arrivals.get(anomaly["actor"], []))
            last = int(datetime.fromisoformat(anomaly["last_seen"].replace("Z", "+00:00")).timestamp())
            upto = bisect.bisect_right(known, (last, float("inf")))
            if upto:
                values.append(at - max(arrival for _, arrival in known[:upto] if arrival <= at))
        return values


def shares(service):
    """User and system time so far, s, of the service and of the servers, which have the parent that this script has."""
    used = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.read_text().split(" (", 1)
        except OSError:
            continue
        name, fields = rest.rsplit(") ", 1)
        fields = fields.split()
        if int(pid) == service or int(fields[1]) == os.getppid() and int(pid) != os.getpid():
            used[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


if __name__ == "__main__":
    main()
