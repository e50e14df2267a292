#!/usr/bin/env bash
# Counts the instructions of a fixed amount of the agent's work, so that a regression shows without a board and whatever else the machine does.
#   cross/count.sh [--update] [TARGET...]
# For each target (all three without an argument): instructions for loading the digits model, for an inference, for checking a signature and a
# digest, and for counting a row of 64 features, beside the figures in cross/instructions/baseline.tsv. Fails where one is more than 5 % above
# its own; --update writes the figures there instead. What is counted is built as the agent in packages is, which takes minutes for each target.
# Needs qemu-user (with plugins, so not qemu-user-static), gcc, and the cross compilers.
set -euo pipefail
cd "$(dirname "$0")/.."

# In hundredths of the baseline.
most=105
baseline=cross/instructions/baseline.tsv
update=
targets=()
for argument in "$@"; do
    case "$argument" in
        --update) update=yes ;;
        -*)
            sed -n '3s/^#   /usage: /p' "$0" >&2
            exit 2
            ;;
        *) targets+=("$argument") ;;
    esac
done
[ ${#targets[@]} -gt 0 ] || targets=(x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu armv7-unknown-linux-gnueabihf)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gcc -shared -fPIC -O2 -o "$work/count.so" cross/instructions/count.c

# counted TARGET PART TIMES: the instructions of all of that, start and end of the program included.
counted() {
    local emulator=() program="target/cross/fixed_work-$1"
    case "$1" in
        x86_64-*) emulator=(qemu-x86_64 -cpu max) ;;
        aarch64-*) emulator=(qemu-aarch64 -cpu cortex-a53 -L /usr/aarch64-linux-gnu) ;;
        armv7-*) emulator=(qemu-arm -cpu cortex-a7 -L /usr/arm-linux-gnueabihf) ;;
    esac
    MUSTER_INSTRUCTIONS="$work/count" "${emulator[@]}" -plugin "$work/count.so" "$program" "$2" "$3" tests/fixtures/digits
    cat "$work/count"
}

failed=
printf '%-30s %-8s %14s %14s %7s\n' target part instructions baseline ratio
for target in "${targets[@]}"; do
    cross/build.sh "$target" dist fixed_work
    while read -r part times; do
        before=$(counted "$target" "$part" 0)
        after=$(counted "$target" "$part" "$times")
        each=$(((after - before) / times))
        known=
        [ ! -f "$baseline" ] || known=$(awk -F'\t' -v t="$target" -v p="$part" '$1 == t && $2 == p { print $3 }' "$baseline")
        ratio=-
        if [ -n "$known" ]; then
            ratio=$(awk -v a="$each" -v b="$known" 'BEGIN { printf "%.3f", a / b }')
            if [ $((each * 100)) -gt $((known * most)) ]; then
                failed=yes
                ratio+=" above"
            fi
        fi
        printf '%-30s %-8s %14d %14s %7s\n' "$target" "$part" "$each" "${known:--}" "$ratio"
        printf '%s\t%s\t%s\n' "$target" "$part" "$each" >>"$work/found.tsv"
    done <<<'load 5
infer 1000
check 100
monitor 10000'
done

if [ -n "$update" ]; then
    # Targets that were not counted this time keep their figures.
    if [ -f "$baseline" ]; then
        awk -F'\t' 'NR == FNR { counted[$1, $2] = 1; next } !(($1, $2) in counted)' "$work/found.tsv" "$baseline" >>"$work/found.tsv"
    fi
    sort "$work/found.tsv" >"$baseline"
    echo "written to $baseline"
elif [ -n "$failed" ]; then
    echo "more instructions than before, by more than 5 %: find out why, or write the new figures down with --update" >&2
    exit 1
fi
