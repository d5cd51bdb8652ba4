# Local stand-ins for what the service talks to, for tests/run: installed once into tests/.tools, started on free ports of
# the loopback interface, always stopped. Sourced, not run.
#
#   Kinesis                                      ferrokinesis   (loses nothing under load, ends closed shards)
#   DynamoDB, EventBridge, SQS, S3, SSM, …       ministack
#   the same as a second opinion                 moto           (and partial failures of PutEvents)
#   Redis                                        redis-server   (the real one)

tools=${FLOWVIGIL_TOOLS:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/.tools}
server_pids=()

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install_servers() {
  mkdir -p "$tools"
  local packages=()
  command -v redis-server >/dev/null || packages+=(redis-server)
  command -v curl >/dev/null || packages+=(curl)
  python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
  if [ ${#packages[@]} -gt 0 ]; then
    as_root apt-get update -q && as_root apt-get install -yq --no-install-recommends "${packages[@]}" || return 1
  fi
  if [ ! -x "$tools/venv/bin/ministack" ] || [ ! -x "$tools/venv/bin/moto_server" ]; then
    python3 -m venv "$tools/venv" && "$tools/venv/bin/pip" install -q ministack==1.5.33 'moto[server]==5.2.5' || return 1
  fi
  if [ ! -x "$tools/bin/ferrokinesis" ]; then
    # Fat optimisation would triple the build for a server that is nowhere near the limit of these tests.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=2 \
      cargo install ferrokinesis --version 0.7.0 --no-default-features --features server --locked --root "$tools" \
      || return 1
  fi
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
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
  trap stop_servers EXIT INT TERM
  kinesis=$(free_port); aws=$(free_port); moto=$(free_port); redis=$(free_port)

  "$tools/bin/ferrokinesis" --port "$kinesis" --create-stream-ms 20 --update-stream-ms 20 --delete-stream-ms 20 \
    --shard-limit 1000 --iterator-ttl-seconds 2 >"$log/ferrokinesis" 2>&1 &
  server_pids+=($!)
  GATEWAY_PORT=$aws "$tools/venv/bin/ministack" >"$log/ministack" 2>&1 &
  server_pids+=($!)
  "$tools/venv/bin/moto_server" -H 127.0.0.1 -p "$moto" >"$log/moto" 2>&1 &
  server_pids+=($!)
  redis-server --port "$redis" --bind 127.0.0.1 --save '' --dir "$log" >"$log/redis" 2>&1 &
  server_pids+=($!)

  wait_for ferrokinesis curl -s "http://127.0.0.1:$kinesis/" &&
    wait_for ministack curl -sf "http://127.0.0.1:$aws/_ministack/health" &&
    wait_for moto curl -sf "http://127.0.0.1:$moto/moto-api/data.json" &&
    wait_for redis redis-cli -p "$redis" ping || return 1

  export AWS_ACCESS_KEY_ID=000000000000 AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
  export AWS_ENDPOINT_URL=http://127.0.0.1:$aws AWS_ENDPOINT_URL_KINESIS=http://127.0.0.1:$kinesis
  export FLOWVIGIL_TEST_MOTO=http://127.0.0.1:$moto FLOWVIGIL_TEST_REDIS=redis://127.0.0.1:$redis
}

stop_servers() {
  trap - EXIT INT TERM
  [ ${#server_pids[@]} -gt 0 ] && kill "${server_pids[@]}" 2>/dev/null
  wait "${server_pids[@]}" 2>/dev/null
  server_pids=()
}
