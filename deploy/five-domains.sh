#!/usr/bin/env bash
# Five domains at three sites, over Flower and in one process: compares the files and the cost.
#
#     deploy/five-domains.sh OUT
#
# TLS=1, STRANGER=1 and KILL_AFTER work as in deploy/trial.sh. One thread per process, so that the
# last bits agree.
set -euo pipefail
out=$1 here=$(dirname "$0")
export OMP_NUM_THREADS=1
mkdir -p "$out"
fedsdr="${FEDSDR:-fedsdr}"
config=$here/five-domains.toml
if [[ ! -e $out/rows ]]; then
  $fedsdr data "$config" --set data.clients=embedded:five-domains --write "$out/domains" >/dev/null
  mkdir "$out/rows"
  cat "$out"/domains/{code,functions}.jsonl >"$out/rows/bank.jsonl"
  cat "$out"/domains/{maths,talk}.jsonl >"$out/rows/clinic.jsonl"
  cp "$out/domains/medicine.jsonl" "$out/rows/school.jsonl"
fi
export SET="--set engine.threads=1 ${SET:-}"
began=$SECONDS
"$here/trial.sh" "$config" "$out/rows" "$out/trial" bank clinic school
echo "over Flower: $((SECONDS - began)) s in total"
[[ -e $out/one/results.json ]] || $fedsdr run "$config" --set data.clients="$out/rows" --out "$out/one"
python - "$out" <<'PY'
import json, pathlib, sys

out = pathlib.Path(sys.argv[1])
pairs = [(p, out / "trial/run" / p.relative_to(out / "one")) for p in (out / "one").glob("checkpoint/*/*")]
for site in ("bank", "clinic", "school"):
    own = out / "one/clients" / site
    there = out / "trial" / site / "run" / site / "clients" / site
    pairs += [(p, there / p.relative_to(own)) for p in own.rglob("*.safetensors")]
for one, other in pairs:
    assert one.read_bytes() == other.read_bytes(), f"{other} is not {one}"
print(f"equal, byte for byte: {len(pairs)} files of R and of every site's S")
for line in (out / "trial/run/rounds.jsonl").read_text().splitlines():
    r = json.loads(line)
    train = sum(v for c in r["clients"] for k, v in c.items() if k.endswith(".seconds"))
    print(f"round {r['round']}: {r['seconds']:.0f} s (training at the sites {train:.0f} s), {r['bytes_down']:,} bytes down, {r['bytes_up']:,} up")
PY
