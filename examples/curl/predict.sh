#!/usr/bin/env bash
# Asks the agent on this device for predictions, through its Unix socket, with nothing but curl and jq.
#
# Usage: predict.sh [--socket PATH] [--model NAME] [--input NAME] [--attempts N] [--interval-s SECONDS] FILE.csv
#
# Each line of FILE.csv is one input: a label, which is not sent, then the numbers. A first line that is no numbers is skipped.
# Prints for each "LINE CLASS PROBABILITY MODEL@VERSION". With --interval-s it starts over when it is through, that many
# seconds later, until it is stopped (SIGTERM: it ends with 0 once the request under way is over).
# What may pass (no socket yet, no model yet, too many requests) is tried --attempts times (8) with growing pauses; then the
# exit status is 1. What cannot pass, such as an input of the wrong length, ends it at once.
set -euo pipefail

socket=/run/muster-agent/inference.sock model=digits input=image attempts=8 interval_s="" file=""
usage() { sed -n '4p' "$0" | cut -c 3- >&2; exit 2; }
while [ $# -gt 0 ]; do
    case "$1" in
        --socket) socket="${2:?}"; shift 2 ;;
        --model) model="${2:?}"; shift 2 ;;
        --input) input="${2:?}"; shift 2 ;;
        --attempts) attempts="${2:?}"; shift 2 ;;
        --interval-s) interval_s="${2:?}"; shift 2 ;;
        -*) usage ;;
        *) file="$1"; shift ;;
    esac
done
[ -n "$file" ] || usage
[ -r "$file" ] || { echo "$file cannot be read" >&2; exit 2; }

# A request takes milliseconds; this bounds one to an agent that is stuck.
timeout_s=5
answer="$(mktemp)"
trap 'rm -f "$answer"' EXIT
trap 'exit 0' TERM INT

# pause SECONDS: a sleep that a signal ends.
pause() { sleep "$1" & wait $!; }

# backoff ATTEMPT: between half and all of 0.2 s, doubled with each attempt up to 10 s. By chance, so that many do not come back together.
backoff() { awk -v n="$1" -v r="$RANDOM" 'BEGIN { p = 0.2 * 2 ^ (n - 1); if (p > 10) p = 10; printf "%.2f", p * (0.5 + r / 65536) }'; }

# ask JSON: the agent's answer goes to the file $answer.
ask() {
    local attempt status seconds why
    for ((attempt = 1; ; attempt++)); do
        status="$(printf '%s' "$1" | curl --silent --unix-socket "$socket" --max-time "$timeout_s" --output "$answer" --write-out '%{http_code}' \
            --header 'Content-Type: application/json' --data-binary @- "http://localhost/v2/models/$model/infer")" || status="000"
        case "$status" in
            200) return ;;
            000) why="no answer from $socket" ;;
            # The agent says why in words, and its Retry-After is one second.
            408 | 429 | 503) why="$(jq --raw-output .error "$answer")" ;;
            *) echo "refused with $status: $(jq --raw-output .error "$answer")" >&2; exit 1 ;;
        esac
        [ "$attempt" -lt "$attempts" ] || { echo "given up after $attempt attempts: $why" >&2; exit 1; }
        seconds="$(backoff "$attempt")"
        echo "trying again in $seconds s: $why" >&2
        pause "$seconds"
    done
}

while :; do
    line=0
    while IFS=, read -r label pixels || [ -n "$label" ]; do
        case "$label" in *[!0-9.-]* | "") continue ;; esac
        line=$((line + 1))
        ask "{\"inputs\":[{\"name\":\"$input\",\"datatype\":\"FP32\",\"shape\":[1,$(tr -cd , <<<"$pixels," | wc -c)],\"data\":[$pixels]}]}"
        jq --raw-output --argjson line "$line" \
            '(.outputs[0].data | to_entries | max_by(.value)) as $best | "\($line) \($best.key) \($best.value) \(.model_name)@\(.model_version)"' "$answer"
    done <"$file"
    [ -n "$interval_s" ] || exit 0
    pause "$interval_s"
done
