"""Sketch rows of features with Apache DataSketches' KLL and with whylogs, and print a JSON object with the time of one row.

    python monitoring_peers.py rows.f32 64

The file holds rows of little-endian FP32. Both peers get what they are fastest with that still sees one row at a time, as a device does: KLL one
`update` for each value, whylogs one `track` for each row.
"""

import json
import sys
import time
from importlib.metadata import version

import datasketches
import numpy as np


def us_a_row(track, rows, rounds):
    times = []
    for _ in range(rounds):
        started = time.perf_counter_ns()
        for row in rows:
            track(row)
        times.append((time.perf_counter_ns() - started) / 1_000 / len(rows))
    return sorted(times)[len(times) // 2]


def main():
    rows = np.fromfile(sys.argv[1], dtype="<f4").reshape(-1, int(sys.argv[2]))
    sketches = [datasketches.kll_floats_sketch(200) for _ in range(rows.shape[1])]

    def kll(row):
        for sketch, value in zip(sketches, row):
            sketch.update(value)

    measured = {
        "kll_version": version("datasketches"),
        "kll_us_a_row": us_a_row(kll, rows.tolist(), 7),
        "whylogs_version": None,
        "whylogs_us_a_row": None,
    }
    try:
        from whylogs.core import DatasetProfile, DatasetSchema

        profile = DatasetProfile(schema=DatasetSchema())
        named = [{f"x{at}": value for at, value in enumerate(row)} for row in rows[:100].tolist()]
        measured["whylogs_us_a_row"] = us_a_row(lambda row: profile.track(row=row), named, 3)
        measured["whylogs_version"] = version("whylogs")
    except ImportError:
        pass
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
