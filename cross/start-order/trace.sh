#!/usr/bin/env bash
# Writes places.txt anew: one agent of the demo, built as it ships but with its symbols, runs under qemu, which writes down what it
# translates. Takes a quarter of an hour, and qemu-user-static (Debian). An agent built in another way inlines other functions.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v qemu-x86_64-static >/dev/null; then
    echo "qemu-x86_64-static is not installed: on Debian, apt-get install qemu-user-static" >&2
    exit 2
fi
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
CARGO_PROFILE_DIST_STRIP=none cross/build.sh x86_64-unknown-linux-gnu
agent="$logs/muster-agent"
# With its symbols it is not to be shipped.
mv target/cross/muster-agent-x86_64-unknown-linux-gnu "$agent"
cat >"$logs/agent" <<END
#!/bin/sh
case "\$*" in
    */lyon-1/*) exec qemu-x86_64-static -cpu max -d in_asm -D "$logs/\$\$.log" "$agent" "\$@" ;;
    *) exec "$agent" "\$@" ;;
esac
END
chmod +x "$logs/agent"
cargo demo --exit --agent "$logs/agent"
cross/start-order/list.py "$agent" "$logs"/*.log
