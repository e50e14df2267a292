"""Hold `muster gate check` against numpy, block by block, and its comparison of predictions against scipy, on drawn fleets.

    python gate.py MUSTER

Needs numpy and scikit-learn's scipy of tests/fixtures/requirements-peers.txt. Prints a line for each fleet; exits with 1 if a number or a verdict differs.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

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


def check(muster, policy_text, header, rows):
    """What `gate check` says of these rows, and its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        policy, data = Path(folder, "gate.yaml"), Path(folder, "scores.csv")
        policy.write_text(policy_text)
        with open(data, "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        ran = subprocess.run([muster, "gate", "check", "--policy", policy, "--data", data, "--output", "json"], capture_output=True)
        return json.loads(ran.stdout), ran.returncode


def splitmix(seed):
    """SplitMix64, from which choices of other canaries are drawn."""
    mask = (1 << 64) - 1
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield z ^ (z >> 31)


def max_t(shares):
    """The statistic for choices (blocks in rows): shares are blocks x devices x classes, canaries first."""
    n = shares.shape[1]
    d = (shares - shares.mean(axis=1, keepdims=True)) * n / (n - 1)
    spread = np.sqrt((d**2).mean(axis=1).sum(axis=0))
    z = d[:, :, spread > 1e-12] / spread[spread > 1e-12]
    return lambda choices: np.abs(np.stack([z[b, c] for b, c in enumerate(choices)]).sum(axis=0)).max(axis=-1)


def drift(shares, seed):
    """The p-value over all choices where they are at most 10,000, else over the 4,999 that the seed gives."""
    blocks, n = shares.shape[:2]
    statistic = max_t(shares)
    if n**blocks <= 10_000:
        choices = np.stack(np.unravel_index(np.arange(n**blocks), [n] * blocks))
    else:
        draws = splitmix(seed)
        drawn = [[next(draws) % n for _ in range(blocks)] for _ in range(4_999)]
        choices = np.array([[0] * blocks, *drawn]).T
    observed = statistic(np.zeros((blocks, 1), int))[0]
    return float(np.mean(statistic(choices) >= observed * (1 - 1e-9)))


def peer(shares, random):
    """scipy's permutation test of the same statistic: devices as samples, exchanged within blocks."""
    statistic = max_t(shares)
    blocks, n = shares.shape[:2]
    samples = tuple(np.full(blocks, device) for device in range(n))

    def of(canary, *_, axis):
        choice = np.moveaxis(np.asarray(canary, int), axis, 0)
        return statistic(choice.reshape(blocks, -1)).reshape(choice.shape[1:])

    resamples = np.inf if n == 2 and blocks <= 13 else 9_999
    test = stats.permutation_test(
        samples, of, permutation_type="samples", vectorized=True, n_resamples=resamples, alternative="greater", rng=random
    )
    return test.pvalue, resamples


def predictions(muster, random):
    """Fleets that predict classes: the p-value is numpy's to the last digit, and scipy's as far as its draws tell."""
    common, wrong = np.array([0.5, 0.3, 0.15, 0.05]), 0
    for canaries, controls in ((5, 1), (12, 1), (4, 2), (15, 1), (20, 3)):
        for moved in (0.0, 0.08):
            counts = np.empty((canaries, controls + 1, len(common)), int)
            for block in range(canaries):
                for device in range(controls + 1):
                    shares = common + (0 if device else moved) * np.array([-1, 1, 0, 0])
                    counts[block, device] = random.multinomial(200, random.dirichlet(shares * 99))
            header = ["time", "block", "device", "arm", "error-rate", *(f"predicted:c{c}" for c in range(len(common)))]
            rows = [
                [f"{b}", f"b{b:03}", f"d{b}-{d}", "control" if d else "canary", "0.0", *counts[b, d]]
                for b in range(canaries)
                for d in range(controls + 1)
            ]
            said, code = check(muster, "guardrails: [error-rate=3%, prediction-drift]\n", header, rows)
            report = said["report"]["guardrails"][1]["drift"]
            shares = counts / counts.sum(axis=2, keepdims=True)
            expected, found = drift(shares, 1), []
            if not np.isclose(report["p_value"], expected, rtol=1e-9):
                found.append(f"p = {report['p_value']}, numpy has {expected}")
            theirs, resamples = peer(shares, random)
            error = 0 if resamples == np.inf else 5 * np.sqrt(2 * theirs * (1 - theirs) / 5_000) + 1e-3
            if abs(report["p_value"] - theirs) > error + 1e-9:
                found.append(f"p = {report['p_value']}, scipy has {theirs}")
            # Half of alpha each: there is another guardrail.
            rejects = expected <= ALPHA / 2
            if (said["report"]["outcome"] == "Failed") != rejects or code != EXIT[said["report"]["outcome"]]:
                found.append(f"{said['report']['outcome']} with exit code {code} at p = {expected}")
            wrong += bool(found)
            name = f"predictions of {canaries} canaries 1:{controls}, {moved} moved"
            print(f"{'differs' if found else 'same':8} {name}: p = {report['p_value']:.4f}, scipy {theirs:.4f}")
            for difference in found:
                print(f"         {difference}")
    return wrong


def main():
    muster, wrong = sys.argv[1], predictions(sys.argv[1], np.random.default_rng(20261123))
    for name, margins, rails in fleets(np.random.default_rng(20261122)):
        columns = ["error-rate", "latency-share:50ms"]
        policy = "guardrails:\n" + "".join(f"  - {c}={m}\n" for c, m in zip(columns, margins))
        rows = [
            [at, f"b{at}", f"d{at}-{device}", "control" if device else "canary", *(repr(float(s[device])) for s in scores)]
            for at, scores in enumerate(zip(*rails))
            for device in range(len(scores[0]))
        ]
        said, code = check(muster, policy, ["time", "block", "device", "arm", *columns], rows)
        found = list(differences(said, margins, rails))
        outcome = said["report"]["outcome"]
        if code != EXIT[outcome]:
            found.append(f"exit code {code} for {outcome}")
        wrong += bool(found)
        print(f"{'differs' if found else 'same':8} {name}: {outcome}, {len(said['steps'])} blocks")
        for difference in found[:5]:
            print(f"         {difference}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
