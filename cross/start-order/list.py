#!/usr/bin/env python3
"""Writes `places.txt`: the places of the functions that agents ran, from qemu's logs of what it translated.

    list.py AGENT LOG...

AGENT is the program that ran, with its symbols.
"""

import bisect
import re
import subprocess
import sys

import places

HEADER = """\
# Functions that a running agent needs, for ordered-gcc, with marks of the types they are compiled for (places.py). Written by trace.sh; one
# too many costs a little memory on boards, as one too few does, so there is no need to write it again for every change.
"""


def symbols(agent):
    """Start, length and name of every function, in order of their starts."""
    listed = subprocess.run(["nm", "-S", "--defined-only", agent], capture_output=True, text=True, check=True)
    rows = (line.split() for line in listed.stdout.splitlines())
    return sorted((int(row[0], 16), int(row[1], 16), row[3]) for row in rows if len(row) == 4 and row[2] in "tTwW")


def translated(log):
    """Addresses of instructions, and the first one of each block with the function's name."""
    named = None
    with open(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("IN: "):
                named = line[4:].strip()
            elif found := re.match(r"0x([0-9a-f]+):", line):
                yield int(found.group(1), 16), named
                named = None


def ran(table, log):
    """Names of the functions that the log shows."""
    starts, by_name = [start for start, _, _ in table], {name: start for start, _, name in table}
    bias, found = None, set()
    for address, named in translated(log):
        if bias is None:
            # A program is put anywhere, at a page's beginning; its first function by name tells where.
            guess = address - by_name.get(named, address + 1)
            if guess < 0 or guess % 4096:
                continue
            bias = guess
        at = bisect.bisect_right(starts, address - bias) - 1
        if at >= 0 and address - bias < table[at][0] + table[at][1]:
            found.add(table[at][2])
    return found


def main():
    agent, *logs = sys.argv[1:]
    table = symbols(agent)
    names = sorted(set().union(*(ran(table, log) for log in logs)))
    if not names:
        sys.exit("the logs show no function of the agent: were they written with its symbols?")
    listed = sorted(place for place in set(places.of_symbols(names)) if not place.startswith(places.FAMILIES))
    places.write(listed, HEADER)
    wanted = places.Wanted()
    inside = sum(row[1] for row, place in zip(table, places.of_symbols([name for _, _, name in table])) if place in wanted)
    print(f"{len(names)} functions from {len(listed)} places, {inside / 2**20:.1f} of {sum(row[1] for row in table) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
