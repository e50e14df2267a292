"""Hold `muster drift score` against numpy and scipy on real data.

    python drift.py MUSTER

Needs numpy, scipy and scikit-learn of tests/fixtures/requirements-peers.txt. Prints a line for each scenario; exits with 1 if a score
differs, a null is called drifted or a drift is not seen.
"""

import csv
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "fixtures"))

from drift_scenarios import class_cells, numeric_cells, scenarios, scores  # noqa: E402


def write_csv(path, table):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        for row in zip(*table.values()):
            writer.writerow("" if value is None else value for value in row)


def differences(column, reference, current):
    """What of a scored column is not as numpy and scipy have it."""
    name, edges = column["name"], column["edges"]
    count = (lambda side: numeric_cells(side, edges)) if edges else (lambda side: class_cells(side, column["classes"]))
    sides = count(reference[name]), count(current[name])
    for said, side, counts in zip(("reference", "current"), (column["reference"], column["current"]), sides):
        if side != counts:
            yield f"{name}: counts of the {said} are {side}, expected {counts}"
    expected = scores(*sides, edges)
    said = {"psi": column["psi"]}
    for score in ("jensen_shannon", "l_infinity", "kolmogorov_smirnov", "wasserstein"):
        said[score] = column[score] and column[score]["value"]
    for score, value in expected.items():
        if score == "chi_square":
            pairs = [(f"chi_square.{part}", column["chi_square"][part], value[part]) for part in value]
        else:
            pairs = [(score, said[score], value)]
        for what, ours, theirs in pairs:
            tolerance = 2e-3 if what == "wasserstein" else 1e-6
            if ours is None or not math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=1e-9 if what != "wasserstein" else 1e-4):
                yield f"{name}: {what} is {ours}, expected {theirs}"


def main():
    muster, failed = sys.argv[1], 0
    for name, null, reference, current in scenarios():
        with tempfile.TemporaryDirectory() as folder:
            before, after, profile = (Path(folder, f) for f in ("reference.csv", "current.csv", "profile.json"))
            write_csv(before, reference)
            write_csv(after, current)
            subprocess.run([muster, "profile", "build", before, "--out", profile], check=True, capture_output=True)
            scored = subprocess.run([muster, "--output", "json", "drift", "score", profile, after], capture_output=True)
        report = json.loads(scored.stdout)
        faults = [fault for column in report["columns"] for fault in differences(column, reference, current)]
        if scored.returncode != (3 if report["drifted"] else 0):
            faults.append(f"the exit code is {scored.returncode} where drifted is {report['drifted']}")
        if report["drifted"] == null:
            drifted = [column["name"] for column in report["columns"] if column["drifted"]]
            faults.append(f"{'a null is called drifted: ' + str(drifted) if null else 'drift is not seen'}")
        print(f"{'ok  ' if not faults else 'FAIL'} drift scores: {name}, {len(report['columns'])} columns", *faults, sep="\n     ")
        failed += bool(faults)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
