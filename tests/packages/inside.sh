#!/usr/bin/env bash
# What run.sh does inside the throw-away Debian, with systemd in charge: an administrator's day with the packages.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive HOME=/root
cd /root

say() { printf '%s\n' "--- $*"; }
fail() {
    printf 'FAILED: %s\n' "$*"
    journalctl --no-pager --lines 60
    exit 1
}
# until_true SECONDS COMMAND…: waits until the command succeeds.
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "in vain: $*"
        sleep 0.2
    done
}
is() { [ "$(systemctl show --property "$2" --value "$1")" = "$3" ]; }
main_pid() { systemctl show --property MainPID --value muster-agent; }
starts() { journalctl --unit "$1" --output cat --no-pager | grep --count '^Started ' || true; }

say "installs"
dpkg --install packages/first/*.deb
is muster-controller ActiveState active || fail "the controller does not run"
is muster-agent UnitFileState enabled || fail "the agent would not start at boot"
[ "$(systemctl is-failed muster-agent)" != failed ] || fail "an agent that nobody has enrolled yet counts as failed"
for file in /etc/muster-agent/agent.toml /etc/muster-controller/controller.toml; do
    [ "$(stat --format %a "$(dirname "$file")")" = 750 ] || fail "$(dirname "$file") may be read by all"
done
for program in muster-agent muster-controller muster; do
    doc="/usr/share/doc/$program"
    for file in changelog.Debian.gz changelog.gz licenses.txt.gz sbom.cdx.json.gz; do
        [ -n "$(zcat "$doc/$file")" ] || fail "$doc/$file is empty"
    done
    [ -s "$doc/copyright" ] || fail "$program has no copyright"
    zcat "$doc/sbom.cdx.json.gz" | jq --exit-status \
        '.bomFormat == "CycloneDX" and (.components | length) > 100 and all(.components[]; .name and .version and .licenses)' >/dev/null ||
        fail "the bill of materials of $program is none"
    zcat /usr/share/man/man[18]/"$program".[18].gz | grep '^\.SH DESCRIPTION' >/dev/null || fail "$program has no manual"
    bash -n "/usr/share/bash-completion/completions/$program"
    zsh -n "/usr/share/zsh/vendor-completions/_$program"
    fish --no-execute "/usr/share/fish/vendor_completions.d/$program.fish"
done
muster-agent check-config --config /etc/muster-agent/agent.toml
muster-agent check-config --config /usr/share/doc/muster-agent/examples/agent.toml
muster-controller check-config --config /etc/muster-controller/controller.toml
muster-controller check-config --config /usr/share/doc/muster-controller/examples/controller.toml
zgrep --quiet enrol /usr/share/man/man8/muster-agent.8.gz || fail "the manual page does not tell of enrolment"
bash -c 'source /usr/share/bash-completion/completions/muster && complete -p muster' >/dev/null

say "does the main job"
export MUSTER_URL=https://127.0.0.1:8443 MUSTER_CA_FILE=/var/lib/muster-controller/pki/ca.pem
MUSTER_TOKEN="$(cat /var/lib/muster-controller/admin.token)"
export MUSTER_TOKEN
muster key generate --out root.key
muster key generate --out release.key
muster trust director-key --out director.pub
muster root init --root-key root.key --release-key release.key.pub --director-key director.pub --out root.json
muster root push root.json
muster token create --root root.json --uses 1 --valid-for 1h >/etc/muster-agent/enrolment-token
chmod 600 /etc/muster-agent/enrolment-token
sed -i 's/^# device-id = .*/device-id = "press-7"/' /etc/muster-agent/agent.toml
cat >>/etc/muster-agent/agent.toml <<'TOML'
[monitor]
window-ms = 500
[serve]
unix-socket = "/run/muster-agent/inference.sock"
unix-socket-group = "muster-clients"
TOML
systemctl restart muster-agent
until_true 30 muster device show press-7
for version in 1.0.0 1.1.0; do
    muster bundle build "digits/bundle-$version.toml" --out "digits-$version"
    muster bundle sign "digits-$version" --key release.key
    muster bundle push "digits-$version"
done
# An application that asks as long as it runs, for a wave passes only on what its devices report.
{
    rows="$(tail --lines=+2 digits/heldout.csv | cut --delimiter=, --fields=2-65)"
    printf '{"inputs":[{"name":"image","datatype":"FP32","shape":[%s,64],"data":[%s]}]}' "$(wc --lines <<<"$rows")" "$(paste --serial --delimiters=, <<<"$rows")"
} >images.json
ask() { curl --silent --output /dev/null http://127.0.0.1:8600/v2/models/digits/infer --data @images.json; }
# Until it has completed: what is killed on trial goes back.
roll_out() {
    while :; do ask || true; sleep 0.1; done &
    local application=$!
    timeout 120 muster rollout create --bundle "$1" --selector '*' --wave 100% --soak 1s --probation 2s --min-reports 1 --min-requests 5 \
        --max-duration 10m --watch || fail "the rollout of $1 did not complete"
    kill "$application"
}
bring_out() {
    roll_out "digits@$1"
    serves "$1" || fail "$1 is committed and does not answer"
}
serves() {
    local status
    status="$(curl --silent --fail http://127.0.0.1:8600/status)" && [[ "$status" == *'"running":{'*'"bundle":"digits@'"$1"'"'* ]]
}
bring_out 1.0.0

say "is a service as it should be"
systemd-analyze security --no-pager muster-agent | tail -1
systemd-analyze security --no-pager muster-controller | tail -1
before="$(main_pid)"
kill -KILL "$before"
until_true 30 serves 1.0.0
[ "$(main_pid)" != "$before" ] || fail "the agent was not started again"
socket=/run/muster-agent/inference.sock
[ "$(stat --format '%U:%G %a' "$socket")" = "muster-agent:muster-clients 660" ] || fail "the socket is $(stat --format '%U:%G %a' "$socket")"
by_socket() { setpriv --reuid nobody --regid nogroup "$@" curl --silent --fail --output /dev/null --unix-socket "$socket" http://agent/v2/health/live; }
by_socket --groups muster-clients || fail "an application of the group cannot use the socket"
by_socket --clear-groups && fail "an application of no group can use the socket"
before="$(systemctl show --property MainPID,NRestarts muster-agent)"
cp -a /etc/muster-agent/agent.toml agent.toml.right
printf '[log]\nfilter = "debug"\n' >>/etc/muster-agent/agent.toml
systemctl reload muster-agent || fail "it cannot be reloaded"
printf 'colour = "red"\n' >>/etc/muster-agent/agent.toml
systemctl reload muster-agent && fail "a wrong configuration was taken"
journalctl --unit muster-agent --output cat --no-pager | grep 'unknown field `colour`' >/dev/null || fail "nobody is told what is wrong"
cp -a agent.toml.right /etc/muster-agent/agent.toml
systemctl reload muster-agent || fail "it cannot be reloaded with what is right again"
[ "$(systemctl show --property MainPID,NRestarts muster-agent)" = "$before" ] || fail "a reload started the agent again"
serves 1.0.0 || fail "1.0.0 does not answer after a reload"
journalctl --sync
[ -n "$(journalctl --quiet --no-pager --lines 1 _SYSTEMD_UNIT=muster-agent.service BUNDLE=digits@1.0.0)" ] || fail "the journal does not know the bundle"
# One that hangs is ended by the watchdog and started again.
mkdir -p /run/systemd/system/muster-agent.service.d
printf '[Service]\nWatchdogSec=6\n' >/run/systemd/system/muster-agent.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart muster-agent
until_true 30 serves 1.0.0
before="$(main_pid)"
kill -STOP "$before"
is_another() { local pid && pid="$(main_pid)" && [ "$pid" != 0 ] && [ "$pid" != "$1" ]; }
until_true 60 is_another "$before"
until_true 30 serves 1.0.0
journalctl --unit muster-agent --output cat --no-pager | grep "Watchdog timeout" >/dev/null || fail "it was not the watchdog that ended it"
rm -r /run/systemd/system/muster-agent.service.d
systemctl daemon-reload
systemctl restart muster-agent
until_true 30 serves 1.0.0
SECONDS=0
systemctl stop muster-agent
[ "$SECONDS" -le 5 ] || fail "the agent took $SECONDS s to stop"
is muster-agent Result success || fail "the agent was not stopped in order"
systemctl start muster-agent
until_true 30 serves 1.0.0

say "takes another program of its own"
cat >agent.toml <<TOML
name = "muster-agent-here"
version = "$(muster-agent --version | cut --delimiter=' ' --fields=2)"
release-counter = 2
[program]
file = "/usr/bin/muster-agent"
target = "$(uname -m)-unknown-linux-gnu"
takes-over-from = "0.1.0"
[requirements]
architectures = ["$(uname -m)"]
TOML
muster bundle build agent.toml --out program
muster bundle sign program --key release.key
muster bundle push program
program() { readlink "/proc/$(main_pid)/exe"; }
[ "$(program)" = /usr/bin/muster-agent ] || fail "the agent runs $(program)"
before="$(systemctl show --property MainPID,NRestarts,InvocationID muster-agent)"
roll_out "muster-agent-here@$(muster-agent --version | cut --delimiter=' ' --fields=2)"
[ "$(program)" = /var/lib/muster-agent/program/a/files/muster-agent ] || fail "the agent runs $(program)"
[ "$(systemctl show --property MainPID,NRestarts,InvocationID muster-agent)" = "$before" ] || fail "the service manager had to start the agent for that"
is muster-agent ActiveState active || fail "the agent is not active under its new program"
serves 1.0.0 || fail "1.0.0 does not answer under the new program"
systemctl restart muster-agent
until_true 30 serves 1.0.0
[ "$(program)" = /var/lib/muster-agent/program/a/files/muster-agent ] || fail "started again, the agent runs $(program)"

say "upgrades"
cp /etc/muster-agent/agent.toml agent.toml.before
invocation() { systemctl show --property InvocationID --value "$1"; }
agent_started="$(starts muster-agent)" controller_started="$(starts muster-controller)"
enrolled() { muster device show press-7 --output json | grep -Eo '"enrolled_at_ms": ?[0-9]+' || fail "it is not said when the device enrolled"; }
identity="$(enrolled)"
dpkg --force-confold --install packages/next/*.deb
until_true 30 serves 1.0.0
cmp agent.toml.before /etc/muster-agent/agent.toml || fail "the configuration was changed"
journalctl --sync
[ "$(starts muster-agent)" = $((agent_started + 1)) ] || fail "the agent was not started once, but: $agent_started, $(starts muster-agent)"
[ "$(starts muster-controller)" = $((controller_started + 1)) ] || fail "the controller was not started once"
until_true 60 muster device show press-7
[ "$(enrolled)" = "$identity" ] || fail "the device enrolled once more"
bring_out 1.1.0

say "goes, and leaves what is its owner's"
dpkg --remove muster-agent muster-controller
for left in /etc/muster-agent/agent.toml /var/lib/muster-agent /var/lib/muster-controller; do
    [ -e "$left" ] || fail "$left went with the program"
done
pgrep --uid muster-agent,muster-controller && fail "something of it still runs"
say "comes back as it was"
dpkg --force-confold --install packages/next/*.deb
until_true 30 serves 1.1.0

say "is purged, also where the owner has mounted something"
mount --bind /var/lib/muster-controller /var/lib/muster-controller
dpkg --purge muster-agent muster-controller muster
umount /var/lib/muster-controller
rmdir /var/lib/muster-controller || fail "purged, and left behind: $(ls -A /var/lib/muster-controller)"
left="$(find / -xdev -path /proc -prune -o -path /root -prune -o \( -iname '*muster*' -print \))"
[ -z "$left" ] || fail "purged, and left behind: $left"
getent passwd muster-agent >/dev/null || fail "the user went too, and its number could become somebody else's"
say "all of it"
