#!/usr/bin/env bash
# Run a SuperLink and one SuperNode per site on this machine for one run; all of them end with it.
#
#     [TLS=1] [STRANGER=1] [KILL_AFTER=ROUND] deploy/trial.sh CONFIG DATA OUT SITE...
#
# DATA/SITE.jsonl has the rows of a site. OUT/run is the server's folder, OUT/SITE a site's state,
# OUT/log the logs. A trial that was stopped continues when it is called again.
# STRANGER (with TLS): a node whose key is not registered tries to join too.
# KILL_AFTER: the SuperLink is killed as soon as that round is in OUT/run/rounds.jsonl.
set -euo pipefail
config=$1 data=$(realpath "$2") out=$3
shift 3
mkdir -p "$out/log"
out=$(realpath "$out")
port=${PORT:-18000}
here=$(dirname "$0")
export FLWR_HOME=$out/flwr FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
mkdir -p "$FLWR_HOME"
pids=()
set -m # each background job is a process group, so that its children can be ended with it
stop() {
  kill -- "${pids[@]/#/-}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
}
trap stop EXIT

link=(--insecure) node=(--insecure)
secure='insecure = true'
if [[ ${TLS:-} ]]; then
  [[ -e $out/keys ]] || "$here/make-keys.sh" "$out/keys" 127.0.0.1 "$@" stranger
  link=(--ssl-ca-certfile "$out/keys/ca.crt" --ssl-certfile "$out/keys/server.crt"
    --ssl-keyfile "$out/keys/server.key" --enable-supernode-auth)
  node=(--root-certificates "$out/keys/ca.crt")
  secure="root-certificates = \"$out/keys/ca.crt\""
fi
printf '[superlink]\ndefault = "trial"\n[superlink.trial]\naddress = "127.0.0.1:%s"\n%s\n' \
  "$port" "$secure" >"$FLWR_HOME/config.toml"

flower-superlink "${link[@]}" --host 127.0.0.1 --port "$port" --database "$out/superlink.db" \
  --disable-runtime-dependency-installation >>"$out/log/superlink" 2>&1 &
superlink=$!
pids+=("$superlink")
for _ in $(seq 120); do
  (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
  sleep 0.5
done
number=0
for site in "$@" ${STRANGER:+stranger}; do
  number=$((number + 1))
  key=()
  if [[ ${TLS:-} ]]; then
    [[ $site == stranger ]] || flwr supernode register "$out/keys/$site.pub" trial || true # may be registered
    key=(--auth-supernode-private-key "$out/keys/$site")
  fi
  flower-supernode "${node[@]}" ${key[@]+"${key[@]}"} --superlink "127.0.0.1:$port" \
    --port $((port + 100 + number)) \
    --node-config "client=\"$site\" data=\"$data/$site.jsonl\" state-dir=\"$out/$site\"" \
    >>"$out/log/$site" 2>&1 &
  pids+=($!)
done
if [[ ${KILL_AFTER:-} ]]; then
  (
    until [[ $(wc -l <"$out/run/rounds.jsonl") -ge $KILL_AFTER ]]; do sleep 0.2; done 2>/dev/null
    kill -KILL -- "-$superlink"
    echo "the SuperLink is killed" >&2
  ) &
  pids+=($!)
fi
resume=()
[[ -e $out/run/config.toml ]] && resume=(--resume)
${FEDSDR:-fedsdr} run "$config" --engine flower --federation trial --out "$out/run" ${resume[@]+"${resume[@]}"} \
  --set engine.sites=$# ${SET:-}
