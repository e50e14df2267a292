#!/usr/bin/env bash
# Makes the Debian packages for TARGET, with everything in them: program, unit, example configuration, manual pages, completions, licenses of all that is
# linked in, and a bill of materials (CycloneDX), which is laid beside the package as well.
#   cross/package.sh TARGET [PROFILE] [PROGRAM…]
# The profile is dist for the agent and release for the others unless another is named; the programs are muster-agent, muster-controller and muster unless
# some are named (for 32-bit ARM only the agent is made). Packages land in target/packages. MUSTER_DEB_VERSION gives them another version than Cargo.toml's;
# MUSTER_BUILT names a folder with programs that are built already. MUSTER_WITHOUT_LICENSES=1 leaves the licenses out, which take minutes to read: such
# packages are for trials and must not be given away. Needs cargo-deb, cargo-cyclonedx and, for the licenses, cargo-about.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    echo "usage: cross/package.sh TARGET [PROFILE] [muster-agent|muster-controller|muster]…" >&2
    exit 2
}
[ $# -ge 1 ] || usage
target="$1" profile="${2:-}"
shift $(($# < 2 ? $# : 2))
programs=("$@")
if [ "${#programs[@]}" = 0 ]; then
    programs=(muster-agent)
    [ "$target" = armv7-unknown-linux-gnueabihf ] || programs+=(muster-controller muster)
fi
tools=(deb cyclonedx)
[ -n "${MUSTER_WITHOUT_LICENSES:-}" ] || tools+=(about)
for tool in "${tools[@]}"; do
    if ! command -v "cargo-$tool" >/dev/null; then
        echo "cargo-$tool is not installed: cargo install --locked cargo-$tool (cargo-about with --features cli)" >&2
        exit 2
    fi
done

version="${MUSTER_DEB_VERSION:-$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)-1}"
packages="$PWD/target/packages"
mkdir -p "$packages"

# What may be linked in, cargo-deny decides; cargo-about wants to be told the same.
python3 - >"$packages/about.toml" <<'PYTHON'
import json, tomllib
with open("deny.toml", "rb") as file:
    print("accepted =", json.dumps(tomllib.load(file)["licenses"]["allow"]))
PYTHON
# Manual pages and completions come from programs of this machine.
cargo build --locked --workspace --bins --features muster-agent/manual
# The time of the last commit stands in packages, so that two of it are the same. Not before: for what C compilers made, cargo takes another time as a change.
SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)"
export SOURCE_DATE_EPOCH

for program in "${programs[@]}"; do
    case "$program" in
        muster-agent) folder=agent usual=dist ;;
        muster-controller) folder=controller usual=release ;;
        muster) folder=controller/cli usual=release ;;
        *) usage ;;
    esac
    stage="$packages/stage/$program"
    rm -rf "$stage"
    mkdir -p "$stage"
    if [ -n "${MUSTER_BUILT:-}" ]; then
        built="$MUSTER_BUILT/$program"
    else
        cross/build.sh "$target" "${profile:-$usual}" "$program"
        built="target/cross/$program-$target"
    fi
    # Cargo strips what is built for people by itself.
    if [ -n "${MUSTER_BUILT:-}" ] || [ "$profile" = dev ]; then
        gnu="${target/-unknown/}"
        "${gnu/#armv7/arm}-strip" --strip-all -o "$stage/$program" "$built"
    else
        ln "$built" "$stage/$program"
    fi
    "target/debug/$program" manual "$stage"
    for page in "$stage"/man/*; do
        gzip --best --no-name "$page"
    done

    cat >"$stage/changelog" <<CHANGELOG
$program ($version) unstable; urgency=medium

  * What is new stands in the changelog of the project.

 -- Muster maintainers <muster@example.org>  $(date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")
CHANGELOG
    gzip --best --no-name --stdout CHANGELOG.md >"$stage/changelog.gz"
    cp cross/copyright "$stage/copyright"
    licenses="$packages/licenses-$program-$target-$(cat Cargo.lock "$folder/Cargo.toml" deny.toml cross/licenses.hbs | sha256sum | cut -c 1-16).txt"
    if [ -n "${MUSTER_WITHOUT_LICENSES:-}" ]; then
        licenses="$stage/licenses.txt"
        echo "Left out of this package, which is for a trial and must not be given away." >"$licenses"
    elif [ ! -e "$licenses" ]; then
        echo "reading the licenses of all that is in $program, which takes minutes"
        # Cargo speaks of every target's crates before it leaves out the others'.
        cargo fetch --quiet --locked
        cargo about generate --offline --locked --config "$packages/about.toml" --target "$target" --manifest-path "$folder/Cargo.toml" --fail \
            --output-file "$licenses.making" cross/licenses.hbs
        mv "$licenses.making" "$licenses"
    fi
    gzip --best --no-name --stdout "$licenses" >"$stage/licenses.txt.gz"
    # It is written beside every Cargo.toml of the workspace, and names where this copy lies.
    cargo cyclonedx --quiet --manifest-path "$folder/Cargo.toml" --format json --spec-version 1.5 --target "$target" --no-build-deps --override-filename sbom.cdx
    sed "s|file://$PWD|file:///muster|g" "$folder/sbom.cdx.json" >"$stage/sbom.cdx.json"
    gzip --best --no-name "$stage/sbom.cdx.json"
    git ls-files '*Cargo.toml' | while read -r manifest; do
        rm -f "$(dirname "$manifest")/sbom.cdx.json"
    done
    package="$(cargo deb --quiet --no-build --no-strip --no-dbgsym --package "$program" --target "$target" --deb-version "$version" --output "$packages/")"
    gunzip --stdout "$stage/sbom.cdx.json.gz" >"${package%.deb}.cdx.json"
    echo "$package: $(($(stat --format %s "$package") / 1024)) KiB, installed $(dpkg-deb --field "$package" Installed-Size) KiB"
done
