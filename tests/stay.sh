# The whole way from a stream to a bus, on this machine: sourced by tests/run --stay, which has installed what it needs,
# and which stops whatever stands in `started`.

# The places that the settings below name, made with the SDK that the emulators bring along.
make_places() {
  "$tools/venv/bin/python" - <<'PY'
import json, boto3
kinesis, events, sqs = boto3.client("kinesis"), boto3.client("events"), boto3.client("sqs")
kinesis.create_stream(StreamName="vpc-flow-log-stream", ShardCount=2)
kinesis.get_waiter("stream_exists").wait(StreamName="vpc-flow-log-stream", WaiterConfig={"Delay": 1})
boto3.client("s3").create_bucket(Bucket="flowvigil-snapshots")
events.create_event_bus(Name="anomaly-detection-events")
for name in ("told", "dead-letters", "refusals"):
    sqs.create_queue(QueueName=name)
events.put_rule(Name="told", EventBusName="anomaly-detection-events",
                EventPattern=json.dumps({"source": ["anomaly-detection-service"]}))
events.put_targets(Rule="told", EventBusName="anomaly-detection-events",
                   Targets=[{"Id": "told", "Arn": "arn:aws:sqs:us-east-1:000000000000:told"}])
boto3.client("ssm").put_parameter(Name="/flowvigil/telemetry/log_level", Type="String", Value="warn")
PY
}

stay() {
  local state built=${CARGO_TARGET_DIR:-$root/target}/debug port pid
  local binary=$built/flowvigil
  state=$(mktemp -d "$tools/stay.XXXXXX")
  scratch=$state
  say "building"
  cargo build --quiet --locked
  start_servers
  export AWS_DEFAULT_REGION=$AWS_REGION
  make_places
  port=$(free_port)
  cat >"$state/flowvigil.toml" <<TOML
[ingest.kinesis]
stream = "vpc-flow-log-stream"
failover = "3s"
idle = "200ms"
[ingest.snapshot.s3]
bucket = "flowvigil-snapshots"
path_style = true
[correlation.redis]
url = "$FLOWVIGIL_TEST_REDIS"
[publish.dynamodb]
table = "anomaly-detection-metadata"
[publish.eventbridge]
bus = "anomaly-detection-events"
[publish.dead_letter]
queue_url = "$AWS_ENDPOINT_URL/000000000000/dead-letters"
refusals_queue_url = "$AWS_ENDPOINT_URL/000000000000/refusals"
[settings.ssm]
path = "/flowvigil/"
interval = "5s"
[api]
listen = "127.0.0.1:$port"
TOML
  {
    env | grep -E '^AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|REGION|DEFAULT_REGION|EC2_METADATA_DISABLED|ENDPOINT_URL)' |
      sed 's/^/export /'
    echo "export FLOWVIGIL_CONFIG=$state/flowvigil.toml PATH=$tools/venv/bin:$built:\$PATH"
  } >"$state/environment"

  "$binary" migrate --config "$state/flowvigil.toml" --apply
  "$binary" run --config "$state/flowvigil.toml" >"$state/told" 2>"$state/log" &
  pid=$!
  started+=("$pid")
  wait_for "the service (see $state/log)" answers "http://127.0.0.1:$port/health/live"
  "$binary" simulate --duration 2h --hosts 12 --demand 0.03 --threats all:low --seed 5 --out "$state/vpc.log" >/dev/null
  "$binary" replay "$state/vpc.log" --config "$state/flowvigil.toml" --to kinesis --speed 120 >"$state/replay" 2>&1 &
  started+=("$!")

  cat <<TEXT

Two simulated hours of a VPC under attack go through a local AWS in one minute.

  the dashboard     http://127.0.0.1:$port/
  the anomalies     curl http://127.0.0.1:$port/v1/anomalies
  why, why not      curl 'http://127.0.0.1:$port/v1/explain?address=10.64.48.9'
  the metrics       curl http://127.0.0.1:$port/metrics
  the settings      $state/flowvigil.toml
  the log           $state/log

In another shell, with the same servers:

  . $state/environment
  flowvigil replay FILE --to kinesis --speed 0
  python -c 'import boto3; boto3.client("ssm").put_parameter(Name="/flowvigil/statistical/port_scan/ports", Value="40", Type="String")'

Ctrl-C stops all of it.
TEXT
  # It ends when it is told to, or when the service does.
  wait "$pid" || { tail -20 "$state/log" >&2; return 1; }
}
