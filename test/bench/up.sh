#!/usr/bin/env bash
# Measures `fairway up`: time to ready on an empty and on a used data directory, time to a first Pod, memory of each
# process, sizes of the executables. Prints a table and writes docs/benchmarks/up.{md,json}. Runs in a network namespace
# of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
runs=${RUNS:-3}
ns=fw-bench-$$
dir=$(mktemp -d)
cleanup() {
  "$root/bin/fairway" down --data-dir "$dir/data" >/dev/null 2>&1 || true
  ip netns del "$ns" 2>/dev/null || true
  rm -rf "$dir"
}
trap cleanup EXIT
ip netns add "$ns"
ip -n "$ns" link set lo up
ip -n "$ns" link add lan0 type veth peer name lan1
for i in lan0 lan1; do ip -n "$ns" link set $i up; done
ip -n "$ns" addr add 198.51.100.2/24 dev lan0
ip -n "$ns" route add default via 198.51.100.1
inside() { nsenter --net="/run/netns/$ns" env -u KUBECONFIG FAIRWAY_DATA_DIR="$dir/data" "$@"; }

now() { date +%s%N; }
since() { echo $((($(now) - $1) / 1000000)); }
median() { printf '%s\n' "$@" | sort -n | awk '{v[NR]=$1} END {print v[int((NR+1)/2)]}'; }

cold=() warm=() pod=()
for ((i = 0; i < runs; i++)); do
  rm -rf "$dir/data"
  t=$(now); inside bin/fairway up --detach >"$dir/out"; cold+=("$(since "$t")")
  t=$(now)
  inside bin/fairway kubectl run first --image fairway.dev/echo >/dev/null
  inside bin/fairway kubectl wait --for=condition=Ready pod/first --timeout=60s >/dev/null
  pod+=("$(since "$t")")
  inside bin/fairway kubectl delete pod first --now >/dev/null
  inside bin/fairway down >/dev/null
  t=$(now); inside bin/fairway up --detach >"$dir/out"; warm+=("$(since "$t")")
  if ((i == runs - 1)); then
    sleep 20 # let start-up garbage settle
    inside bin/fairway status -o json >"$dir/status.json"
    jq -r '.processes[] | "\(.role) \(.node) \(.pid)"' "$dir/status.json" | while read -r role node pid; do
      echo "$role $(awk '/^VmRSS/ {print int($2/1024)}' "/proc/$pid/status")"
    done >"$dir/memory"
  fi
  inside bin/fairway down >/dev/null
done

mib() { echo $(($(stat -c %s "$1") / 1048576)); }
mkdir -p docs/benchmarks
jq -n --argjson cold "$(median "${cold[@]}")" --argjson warm "$(median "${warm[@]}")" --argjson pod "$(median "${pod[@]}")" \
  --argjson runs "$runs" --arg kernel "$(uname -r)" --arg cores "$(nproc)" \
  --arg fairway "$(mib bin/fairway)" --arg standalone "$(mib bin/fairway-standalone)" --arg init "$(mib bin/fairway-init)" \
  --rawfile memory "$dir/memory" '{
    runs: $runs, machine: {kernel: $kernel, cores: ($cores|tonumber)},
    milliseconds: {upEmpty: $cold, upAgain: $warm, firstPodReady: $pod},
    residentMiB: ($memory | split("\n") | map(select(. != "") | split(" ") | {(.[0]): (.[1]|tonumber)}) | add),
    executableMiB: {"fairway": ($fairway|tonumber), "fairway-standalone": ($standalone|tonumber), "fairway-init": ($init|tonumber)}
  }' >docs/benchmarks/up.json
{
  echo "# \`fairway up\`"
  echo
  echo "Made by \`make bench-up\`: median of $runs runs on $(nproc) cores, Linux $(uname -r)."
  echo
  echo "| what | |"
  echo "|---|---|"
  jq -r '.milliseconds | "| ready, empty data directory | \(.upEmpty/1000) s |", "| ready, data directory used before | \(.upAgain/1000) s |", "| `kubectl run` to Pod ready, with kubectl itself twice | \(.firstPodReady/1000) s |"' docs/benchmarks/up.json
  jq -r '.residentMiB | to_entries[] | "| memory of \(.key), resident | \(.value) MiB |"' docs/benchmarks/up.json
  jq -r '.executableMiB | to_entries[] | "| size of \(.key) | \(.value) MiB |"' docs/benchmarks/up.json
} >docs/benchmarks/up.md
cat docs/benchmarks/up.md
