#!/bin/sh
# Installs what the project's commands need and the machine lacks, and says so:
#   sh test/setup.sh [--quiet] [demo|lab|test|bench|chaos|image|cluster]
# Runs under whatever Node the machine has; npm ci brings the Node that the project runs on.
set -eu
cd "$(dirname "$0")/.."
# What a command prints is for whoever reads it, a script perhaps; this is not part of it.
exec >&2

quiet=
[ "${1:-}" = --quiet ] && { quiet=yes; shift; }
task=${1:-}

if [ ! -f node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  echo "Installing the npm packages (npm ci) ..."
  npm ci --no-audit --no-fund --loglevel=error
  touch node_modules/.package-lock.json
fi
if ! node_modules/.bin/node --version >/dev/null 2>&1; then
  echo "Installing Node 24 from npm (npm rebuild node) ..."
  npm rebuild node --loglevel=error
fi

# Debian packages by the command that each brings.
lab='iptables-nft:iptables iptables-legacy:iptables conntrack:conntrack ip:iproute2 nsenter:util-linux setpriv:util-linux'
case $task in
  demo) wanted="$lab telnet:telnet" ;;
  lab) wanted="$lab telnet:telnet" ;;
  test) wanted="$lab telnet:telnet dig:dnsutils" ;;
  chaos) wanted="$lab faketime:faketime" ;;
  image) wanted='strip:binutils tar:tar' ;;
  cluster) wanted="$lab strip:binutils tar:tar gcc:gcc curl:curl pgrep:procps" ;;
  bench) wanted="$lab haproxy:haproxy iperf3:iperf3 wrk:wrk openssl:openssl dnsperf:dnsperf" ;;
  *) wanted= ;;
esac

# /usr/sbin is not on everyone's PATH.
PATH=$PATH:/usr/sbin:/sbin
missing=
for pair in $wanted; do
  package=${pair#*:}
  command -v "${pair%%:*}" >/dev/null 2>&1 || case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
done
missing=${missing# }

if [ -n "$missing" ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Cannot go on: these packages are missing: $missing. Install them, or run this as root on Debian or Ubuntu."
    exit 1
  fi
  echo "Installing Debian packages: $missing ..."
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  # shellcheck disable=SC2086
  { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1 || {
    tail -n 15 "$log"
    echo "Cannot go on: apt-get could not install: $missing."
    exit 1
  }
  rm -f "$log"
elif [ -z "$quiet" ]; then
  echo "All that is needed is installed."
fi
