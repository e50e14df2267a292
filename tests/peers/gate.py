"""Hold `muster gate check` against numpy, block by block, on drawn fleets.

    python gate.py MUSTER

Needs numpy of tests/fixtures/requirements-peers.txt. Prints a line for each fleet; exits with 1 if a number or a verdict differs.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ALPHA, RHO = 0.05, 0.3
EXIT = {"Successful": 0, "Failed": 1, "Inconclusive": 5}


def evidence(blocks):
    """The evidence of a loss after each block: Ville's martingale, averaged over five rates of betting."""
    spread = np.sqrt(sum(((b - b.mean()) ** 2).sum() for b in blocks) / sum(len(b) - 1 for b in blocks))
    rates = np.geomspace(2.5, 15, 5) / np.sqrt(len(blocks))
    factors = [[np.exp(r * b[0] / spread) / np.exp(r * b / spread).mean() for r in rates] for b in blocks]
    return np.cumprod(factors, axis=0)


def bound(blocks):
    """The upper end of the confidence sequence for the mean difference."""
    n = len(blocks)
    if n < 10:
        return None
    d = np.array([b[0] - b[1:].mean() for b in blocks])
    width = np.sqrt(2 * (n * RHO**2 + 1) / (n**2 * RHO**2) * np.log(np.sqrt(n * RHO**2 + 1) / ALPHA))
    return d.mean() + d.std(ddof=1) * width


def fleets(random):
    """Name, margins and scores: blocks of arrays (canary first), one for each guardrail."""
    for canaries, controls in ((8, 1), (20, 1), (40, 4)):
        for worse in (0.0, 0.02, 0.06):
            draw = lambda mean: random.beta(mean * 19, (1 - mean) * 19)
            rails = [
                [np.array([draw(0.05 + by)] + [draw(0.05) for _ in range(controls)]) for _ in range(canaries)]
                for by in (worse, 0.0)
            ]
            yield f"{canaries} canaries 1:{controls}, worse by {worse}", (0.03, 0.2), rails


def differences(said, margins, rails):
    names = [guardrail["guardrail"]["metric"] for guardrail in said["report"]["guardrails"]]
    products = [evidence(rail) for rail in rails]
    most, failed = 1.0, False
    for at, step in enumerate(said["steps"]):
        each = [product[at].mean() for product in products]
        if np.mean(each) > most:
            most, of = np.mean(each), each
        failed = most >= 1 / ALPHA
        kept = True
        if not np.isclose(step["report"]["log_e"], np.log(most), rtol=1e-6, atol=1e-9):
            yield f"block {at}: log evidence {step['report']['log_e']}, expected {np.log(most)}"
        for rail, margin, name, report in zip(rails, margins, names, step["report"]["guardrails"]):
            expected, ours = bound(rail[: at + 1]), report["upper_bound"]
            kept = kept and expected is not None and expected < margin
            if (expected is None) != (ours is None) or (ours is not None and not np.isclose(ours, expected, rtol=1e-6)):
                yield f"block {at}: {name} at most {ours}, expected {expected}"
        expected = "Failed" if failed else "Successful" if kept else "Inconclusive"
        if step["report"]["outcome"] != expected:
            yield f"block {at}: {step['report']['outcome']}, expected {expected}"


def main():
    muster, wrong = sys.argv[1], 0
    for name, margins, rails in fleets(np.random.default_rng(20261122)):
        with tempfile.TemporaryDirectory() as folder:
            policy, data = Path(folder, "gate.yaml"), Path(folder, "scores.csv")
            columns = ["error-rate", "latency-share:50ms"]
            policy.write_text("guardrails:\n" + "".join(f"  - {c}={m}\n" for c, m in zip(columns, margins)))
            with open(data, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["time", "block", "device", "arm", *columns])
                for at, scores in enumerate(zip(*rails)):
                    for device in range(len(scores[0])):
                        arm = "control" if device else "canary"
                        writer.writerow([at, f"b{at}", f"d{at}-{device}", arm, *(repr(float(s[device])) for s in scores)])
            ran = subprocess.run([muster, "gate", "check", "--policy", policy, "--data", data, "--output", "json"], capture_output=True)
            said = json.loads(ran.stdout)
            found = list(differences(said, margins, rails))
            outcome = said["report"]["outcome"]
            if ran.returncode != EXIT[outcome]:
                found.append(f"exit code {ran.returncode} for {outcome}")
        wrong += bool(found)
        print(f"{'differs' if found else 'same':8} {name}: {outcome}, {len(said['steps'])} blocks")
        for difference in found[:5]:
            print(f"         {difference}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
