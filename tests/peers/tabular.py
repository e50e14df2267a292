"""Fresh exports of scikit-learn, XGBoost and LightGBM, larger than the fixtures, pass `muster bundle build` with onnxruntime's answers."""

import json
import subprocess
import sys

from fleet import expect, fixtures

TREES_TIMES = 10


def make(folder, seed):
    """Trains and exports; gives the models."""
    command = [sys.executable, str(fixtures() / "make_tabular.py"), str(folder), str(seed), str(TREES_TIMES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    expect(done.returncode == 0, f"make_tabular.py ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return sorted(folder.glob("*.onnx"))


def build(controller, onnx):
    model = onnx.stem
    fields = {"name": model, "version": "1.0.0", "model": onnx.name, "golden": f"{model}.cases.json"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    description = onnx.with_suffix(".toml")
    description.write_text("\n".join(["release-counter = 1", *lines, ""]))
    built = json.loads(controller.muster("--output", "json", "bundle", "build", description, "--out", onnx.with_suffix("")))
    return f"largest difference {built['golden_max_abs_difference']:.1e}, median {built['golden_median_us']} us"


def check(report, controller, folder, seed):
    try:
        import skl2onnx  # noqa: F401
    except ImportError:
        print("--    exports are not checked: tests/fixtures/requirements-tabular.txt is not installed", flush=True)
        return
    models = []
    report.check(f"exports are made anew, seed {seed}", lambda: models.extend(make(folder, seed)))
    for onnx in models:
        report.check(f"onnxruntime: {onnx.stem}, made anew and built", build, controller, onnx)
