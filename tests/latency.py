#!/usr/bin/env python3
"""Measures how long an anomaly takes from the stream to the bus, and how fast a task catches up after a stop.

    tests/run --list                                        once: installs what the servers need
    tests/latency.py [--binary target/release/flowvigil] [--rate 50000] [--seconds 60] [--stop 60]

A simulated log is put on a local Kinesis stream at `--rate` lines a second while `flowvigil run` reads it, records in
DynamoDB and announces on EventBridge, whose rule puts every event on a queue. The latency of an anomaly is the time from
the arrival in the stream of the last line that has its actor and is not later than its `last_seen`, to its arrival in the
queue, for every `Anomaly Detected`. What waits for its window to close waits for event time, which comes as fast as the log
is played; so it is told apart which anomalies were told from open windows.

Then the task is stopped for `--stop` seconds while the log goes on, and started again: how much event time it works off in a
second of the clock until it stands at the end of the stream.
"""
import argparse, bisect, collections, json, os, pathlib, signal, subprocess, sys, tempfile, time, urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", default=str(ROOT / "target/release/flowvigil"))
    arguments.add_argument("--rate", type=int, default=50_000, help="lines a second")
    arguments.add_argument("--seconds", type=int, default=60, help="how long lines are put on the stream")
    arguments.add_argument("--stop", type=int, default=60, help="for how long the task is stopped, s")
    arguments.add_argument("--shards", type=int, default=4)
    args = arguments.parse_args()
    if "FLOWVIGIL_LATENCY_INSIDE" not in os.environ:
        # The servers are started and stopped by the shell functions that tests/run uses.
        script = 'set -e; tools=tests/.tools; started=(); trap \'kill "${started[@]}" 2>/dev/null\' EXIT; ' \
                 'export PATH="$PWD/$tools/bin:$PWD/$tools/venv/bin:$PATH"; tools=$PWD/$tools; . tests/servers.sh; start_servers; ' \
                 'FLOWVIGIL_LATENCY_INSIDE=1 "$tools/venv/bin/python" tests/latency.py "$@"'
        sys.exit(subprocess.call(["bash", "-c", script, "latency", *sys.argv[1:]], cwd=ROOT))
    measure(args)


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def make_log(binary, folder, lines):
    log = folder / "vpc.log"
    subprocess.run([binary, "simulate", "--records", str(lines), "--threats", "port_scan,ddos:low,c2_beacon,crypto_mining,tor",
                    "--no-header", "--seed", "5", "-o", log], check=True)
    return log


def measure(args):
    import boto3
    from botocore.config import Config

    folder = pathlib.Path(tempfile.mkdtemp(prefix="flowvigil-latency-"))
    name = f"latency-{os.getpid()}"
    client = lambda service, url: boto3.client(service, region_name=os.environ["AWS_REGION"], endpoint_url=os.environ[url],
                                             config=Config(retries={"max_attempts": 5}))
    kinesis = client("kinesis", "AWS_ENDPOINT_URL_KINESIS")
    events, sqs = client("events", "AWS_ENDPOINT_URL"), client("sqs", "AWS_ENDPOINT_URL")
    kinesis.create_stream(StreamName=name, ShardCount=args.shards)
    queue = sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.create_event_bus(Name=name)
    events.put_rule(Name=name, EventBusName=name, EventPattern='{"source":["anomaly-detection-service"]}')
    events.put_targets(Rule=name, EventBusName=name, Targets=[{"Id": "queue", "Arn": arn}])

    config = folder / "flowvigil.toml"
    config.write_text(f"""
[ingest.kinesis]
stream = "{name}"
application = "{name}-leases"
idle = "200ms"
[ingest.snapshot.local]
folder = "{folder}/snapshots"
[publish.dynamodb]
table = "{name}"
models_table = "{name}-models"
[publish.eventbridge]
bus = "{name}"
[api]
listen = "127.0.0.1:0"
""")
    environment = {**os.environ, "FLOWVIGIL_CONFIG": str(config)}
    subprocess.run([args.binary, "migrate", "--apply"], env=environment, check=True, stdout=subprocess.DEVNULL)
    log = make_log(args.binary, folder, args.rate * args.seconds)
    times = [int(line.split(" ")[11]) for line in open(log) if line.count(" ") > 11 and line.split(" ")[11].isdigit()]
    span = max(times) - min(times)
    speed = span / args.seconds

    def task():
        return subprocess.Popen([args.binary, "run"], env=environment, stdout=subprocess.DEVNULL, stderr=open(folder / "log", "a"))

    running = task()
    time.sleep(3)
    begun = time.time()
    feeding = subprocess.Popen([args.binary, "replay", log, "--to", "kinesis", "--speed", str(speed)], env=environment)
    heard = {}

    def listen():
        for message in sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=0).get("Messages", []):
            at = time.time()
            event = json.loads(message["Body"])
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            if event["detail-type"] == "Anomaly Detected":
                heard.setdefault(event["detail"]["anomaly_id"], (at, event["detail"]))

    while feeding.poll() is None:
        listen()
        time.sleep(0.02)
    fed = time.time() - begun
    quiet = time.time() + 10
    while time.time() < quiet:
        listen()
        time.sleep(0.02)

    # When the lines of each address arrived in the stream, by event time.
    arrivals = collections.defaultdict(list)
    for shard in kinesis.list_shards(StreamName=name)["Shards"]:
        after = None
        while True:
            start = {"ShardIteratorType": "TRIM_HORIZON"} if after is None else \
                {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": after}
            iterator = kinesis.get_shard_iterator(StreamName=name, ShardId=shard["ShardId"], **start)["ShardIterator"]
            records = kinesis.get_records(ShardIterator=iterator, Limit=1000)["Records"]
            if not records:
                break
            after = records[-1]["SequenceNumber"]
            for record in records:
                at = record["ApproximateArrivalTimestamp"].timestamp()
                for line in record["Data"].decode().splitlines():
                    fields = line.split(" ")
                    if len(fields) > 11 and fields[11].isdigit():
                        for address in {fields[3], fields[4]}:
                            arrivals[address].append((int(fields[11]), at))
    for known in arrivals.values():
        known.sort()
    latencies = collections.defaultdict(list)
    from datetime import datetime
    for at, anomaly in heard.values():
        about = anomaly["actor"] if anomaly["actor"] != "many" else anomaly["targets"][0]["address"]
        known = arrivals.get(about, [])
        last = int(datetime.fromisoformat(anomaly["last_seen"].replace("Z", "+00:00")).timestamp())
        upto = bisect.bisect_right(known, (last, float("inf")))
        if upto:
            latencies[anomaly["threat"]].append(at - known[upto - 1][1])
    every = [value for values in latencies.values() for value in values]
    print(f"{len(times)} lines of {span} s of event time in {fed:.1f} s: {len(times) / fed:.0f} lines/s, x{speed:.0f}; {args.shards} shards")
    for threat, values in sorted({**latencies, "all": every}.items()):
        if values:
            print(f"{threat:14} {len(values):4} told  p50 {percentile(values, .5):6.2f} s  p95 {percentile(values, .95):6.2f} s  "
                  f"p99 {percentile(values, .99):6.2f} s")

    # Lag: the same log again while nobody reads, and then how fast it is worked off.
    running.send_signal(signal.SIGTERM)
    running.wait(60)
    feeding = subprocess.Popen([args.binary, "replay", log, "--to", "kinesis", "--speed", str(span / max(1, args.stop))], env=environment)
    feeding.wait()
    ends = {}
    for shard in kinesis.list_shards(StreamName=name)["Shards"]:
        after = None
        while True:
            start = {"ShardIteratorType": "TRIM_HORIZON"} if after is None else \
                {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": after}
            iterator = kinesis.get_shard_iterator(StreamName=name, ShardId=shard["ShardId"], **start)["ShardIterator"]
            records = kinesis.get_records(ShardIterator=iterator, Limit=10000)["Records"]
            if not records:
                break
            after = ends[shard["ShardId"]] = records[-1]["SequenceNumber"]
    leases = client("dynamodb", "AWS_ENDPOINT_URL")
    begun = time.time()
    running = task()

    def behind():
        rows = leases.scan(TableName=f"{name}-leases")["Items"]
        at = {row["leaseKey"]["S"]: row["checkpoint"]["S"] for row in rows}
        return [shard for shard, end in ends.items() if at.get(shard) != end]

    # Checkpoints move once in a snapshot interval; the stop below makes the last one.
    deadline = time.time() + 600
    while behind() and time.time() < deadline:
        time.sleep(0.5)
    took = time.time() - begun
    running.send_signal(signal.SIGTERM)
    running.wait(60)
    print(f"after a stop: {len(times)} lines worked off and checkpointed in {took:.1f} s: {len(times) / took:.0f} lines/s, "
          f"{span / took:.0f} s of event time a second")


if __name__ == "__main__":
    main()
