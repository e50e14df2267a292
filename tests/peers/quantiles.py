"""What `muster drift export --quantiles` writes is read by Apache DataSketches' Python package, and says what numpy says of the same rows."""

import csv
import json
import shutil
import urllib.request

import datasketches
import numpy as np

from fleet import expect, fixtures, wait_for
from inference import PACE, committed, wait_until_served

RANKS = [0.05, 0.25, 0.5, 0.75, 0.95]
WATCHED = ["p10", "p20", "p36"]
BATCH = 20


def release(controller, folder):
    """The digits with quantiles of three pixels; gives the bundle's name."""
    digits = fixtures() / "digits"
    for name in ["reference.csv", "golden-1.1.0.json", "digits-1.1.0.onnx"]:
        shutil.copy(digits / name, folder / name)
    text = (digits / "bundle-1.1.0.toml").read_text()
    text = text.replace('name = "digits"', 'name = "pixels"', 1)
    text = text.replace("features = [", f"quantiles = {json.dumps(WATCHED)}\nfeatures = [", 1)
    description = folder / "pixels.toml"
    description.write_text(text)
    built = folder / "pixels"
    controller.muster("bundle", "build", description, "--out", built)
    controller.muster("bundle", "sign", built, "--key", controller.release_key)
    controller.muster("bundle", "push", built)
    return "pixels@1.1.0"


def ask(agent, images):
    for start in range(0, len(images), BATCH):
        rows = images[start : start + BATCH]
        data = {"name": "image", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
        request = urllib.request.Request(
            f"{agent.inference_url}/v2/models/pixels/infer",
            data=json.dumps({"inputs": [data]}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            expect(response.status == 200, f"the agent answered {response.status}")


def exported(controller, bundle, folder, rows):
    """The folder with the sketches, once all rows have been reported."""

    def complete():
        report = json.loads(controller.muster("drift", "show", bundle, "--output", "json"))
        found = [column["n"] for group in report["groups"] for column in group.get("quantiles", [])]
        return found == [rows] * len(WATCHED)

    wait_for(f"{rows} rows of {bundle} are reported", complete)
    out = folder / "exported"
    controller.muster("drift", "export", bundle, "--quantiles", out)
    return out


def told(sketch, values):
    """Holds the quantiles of `sketch` against the exact shares of `values`; gives the largest error."""
    expect(sketch.n == len(values), f"{sketch.n} values, and {len(values)} were sent")
    values = np.sort(values)
    worst = 0.0
    for rank, x in zip(RANKS, sketch.get_quantiles(RANKS, True)):
        below, at_most = (np.searchsorted(values, x, side) / len(values) for side in ("left", "right"))
        worst = max(worst, below - rank, rank - at_most)
    # The bound holds for 99 of 100 queries; there are fifteen.
    expect(worst <= 2 * sketch.normalized_rank_error(False), f"a rank is off by {worst:.3f}")
    return worst


def quantiles(controller, agent, folder):
    folder.mkdir()
    bundle = release(controller, folder)
    create = ["rollout", "create", "--bundle", bundle, "--selector", f"id={agent.id}", *PACE, "--output", "json"]
    rollout = json.loads(controller.muster(*create))["id"]
    try:
        wait_until_served(controller, agent, "pixels", rollout)
        wait_for(f"{agent.id} commits {bundle}", lambda: committed(controller, agent, bundle))
        table = np.loadtxt(fixtures() / "digits/heldout.csv", delimiter=",", skiprows=1, dtype=np.float32)
        images = np.tile(table[:, 1:], (4, 1))
        ask(agent, images)
        out = exported(controller, bundle, folder, len(images))
    finally:
        controller.muster("rollout", "abort", rollout, "--reason", "the comparison is done")
    worst = 0.0
    with (out / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    expect([row["column"] for row in rows] == WATCHED, f"{rows}")
    for row in rows:
        sketch = datasketches.kll_floats_sketch.deserialize((out / row["file"]).read_bytes())
        error = abs(sketch.normalized_rank_error(False) - float(row["rank_error"]))
        expect(error < 1e-9, f"{row['file']}: {row['rank_error']} is told, and the package has another rank error")
        worst = max(worst, told(sketch, images[:, int(row["column"][1:])]))
    return f"{len(rows)} sketches of {len(images)} rows, ranks off by at most {worst:.3f}"


def check(report, controller, agent, folder):
    report.check("datasketches: exported quantiles, beside numpy", quantiles, controller, agent, folder)
