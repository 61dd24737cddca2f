#!/usr/bin/env bash
# Installs the Debian packages whose programs the tests use as real clients.
set -euo pipefail

declare -A packages=(
  [ip]=iproute2 [curl]=curl [dig]=dnsutils [openssl]=openssl [nft]=nftables [conntrack]=conntrack
  [nc]=netcat-openbsd [mariadb]=mariadb-client-core [jq]=jq [ping]=iputils-ping [pgrep]=procps [git]=git [python3]=python3 [ss]=iproute2
  [iptables-nft-save]=iptables [wget]=wget [nslookup]=dnsutils [iperf3]=iperf3 [nsenter]=util-linux [tcpdump]=tcpdump [gcc]=gcc
  [dnsperf]=dnsperf [kdig]=knot-dnsutils [musl-gcc]=musl-tools
)
missing=()
for program in "${!packages[@]}"; do
  command -v "$program" >/dev/null || missing+=("${packages[$program]}")
done
/usr/bin/python3 -c 'import requests' 2>/dev/null || missing+=(python3-requests)
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
echo "installing: ${missing[*]}"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
