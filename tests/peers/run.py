"""Check a running fleet with programs that know nothing of Muster.

    python run.py DIR/demo.json

`demo.json` is what `cargo demo --data-dir DIR` leaves. Needs mosquitto-clients, openssl and, for metrics, prometheus from the system, and the packages
of tests/fixtures/requirements-peers.txt; exports are checked where requirements-tabular.txt is installed too. It stops one
agent, so that its client id is free, and leaves the other models it rolls out on another. Prints a line for each check; exits
with 1 if one failed.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import envelopes
import fleet
import inference
import metrics
import quantiles
import samples
import tabular
import topics


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the demo.json of a running demo")
    arguments = parser.parse_args()

    summary = json.loads(arguments.demo.read_text())
    if len(summary["agents"]) < 3:
        sys.exit("three agents are needed: one is stopped, one is attacked, one serves")
    controller = fleet.Controller(summary["controller"])
    stopped, attacked, serving = (fleet.Agent(agent) for agent in summary["agents"][:3])

    report = fleet.Report()
    with tempfile.TemporaryDirectory(prefix="muster-peers-") as folder:
        envelopes.check(report, controller, Path(folder))
        # While every agent is there.
        metrics.check(report, controller, [fleet.Agent(agent) for agent in summary["agents"]], Path(folder))
        topics.check(report, controller, stopped, attacked, Path(folder))
        samples.check(report, controller, serving, Path(folder))
        inference.check(report, controller, serving, Path(folder))
        quantiles.check(report, controller, serving, Path(folder) / "quantiles")
        tabular.check(report, controller, Path(folder) / "tabular", int(time.time()) % 100_000)
    print(f"{report.passed} passed, {report.failed} failed")
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
