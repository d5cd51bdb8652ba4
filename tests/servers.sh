# Local stand-ins for what the service talks to, started on free ports of the loopback interface. Sourced by tests/run,
# which has installed them, and which stops whatever stands in `started`.
#
#   Kinesis                                      ferrokinesis   (loses nothing under load, ends closed shards)
#   DynamoDB, EventBridge, SQS, S3, SSM, …       ministack
#   the same as a second opinion                 moto           (and partial failures of PutEvents)
#   Redis                                        redis-server   (the real one)

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# answers URL: whether anything speaks HTTP there, whatever it says
answers() {
  python3 -c 'import sys, urllib.error, urllib.request
try: urllib.request.urlopen(sys.argv[1], timeout=2)
except urllib.error.HTTPError: pass' "$1"
}

# wait_for WHAT COMMAND…: until the command succeeds, at most 30 s
wait_for() {
  local what=$1 i
  shift
  for i in $(seq 300); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.1
  done
  echo "tests: $what did not start; see $tools/log" >&2
  return 1
}

start_servers() {
  local kinesis aws moto redis log=$tools/log
  mkdir -p "$log"
  kinesis=$(free_port); aws=$(free_port); moto=$(free_port); redis=$(free_port)

  "$tools/bin/ferrokinesis" --port "$kinesis" --create-stream-ms 20 --update-stream-ms 20 --delete-stream-ms 20 \
    --shard-limit 1000 --iterator-ttl-seconds 2 >"$log/ferrokinesis" 2>&1 &
  started+=($!)
  GATEWAY_PORT=$aws "$tools/venv/bin/ministack" >"$log/ministack" 2>&1 &
  started+=($!)
  "$tools/venv/bin/moto_server" -H 127.0.0.1 -p "$moto" >"$log/moto" 2>&1 &
  started+=($!)
  redis-server --port "$redis" --bind 127.0.0.1 --save '' --dir "$log" >"$log/redis" 2>&1 &
  started+=($!)

  wait_for ferrokinesis answers "http://127.0.0.1:$kinesis/" &&
    wait_for ministack answers "http://127.0.0.1:$aws/_ministack/health" &&
    wait_for moto answers "http://127.0.0.1:$moto/moto-api/data.json" &&
    wait_for redis redis-cli -p "$redis" ping || return 1

  export AWS_ACCESS_KEY_ID=000000000000 AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
  export AWS_ENDPOINT_URL=http://127.0.0.1:$aws AWS_ENDPOINT_URL_KINESIS=http://127.0.0.1:$kinesis
  export FLOWVIGIL_TEST_MOTO=http://127.0.0.1:$moto FLOWVIGIL_TEST_REDIS=redis://127.0.0.1:$redis
}
