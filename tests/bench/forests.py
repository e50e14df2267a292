"""Train forests, export them to FOLDER, time onnxruntime on them with one thread, and print a JSON object for each.

    python forests.py FOLDER REPEATS

Needs tests/fixtures/requirements-tabular.txt. `bound_median_us` is of `run_with_iobinding` on buffers bound before, which leaves
out most of what Python adds to `session.run`.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn import datasets, ensemble

TREES = {"n_estimators": 100, "max_depth": 12, "random_state": 7, "n_jobs": 1}


def median_us(run, repeats):
    for _ in range(repeats // 10):
        run()
    times = np.empty(repeats)
    for turn in range(repeats):
        started = time.perf_counter_ns()
        run()
        times[turn] = time.perf_counter_ns() - started
    return float(np.median(times)) / 1_000


def main():
    folder, repeats = Path(sys.argv[1]), int(sys.argv[2])
    digits, diabetes = datasets.load_digits(return_X_y=True), datasets.load_diabetes(return_X_y=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for name, model, (x, y) in (
        ("classifier", ensemble.RandomForestClassifier(**TREES), digits),
        ("regressor", ensemble.RandomForestRegressor(**TREES), diabetes),
    ):
        x = x.astype(np.float32)
        model.fit(x, y)
        own = {id(model): {"zipmap": False}} if name == "classifier" else None
        types = [("input", FloatTensorType([None, x.shape[1]]))]
        onnx = to_onnx(model, initial_types=types, options=own, target_opset={"": 17, "ai.onnx.ml": 3})
        path = folder / f"{name}.onnx"
        path.write_bytes(onnx.SerializeToString())
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for batch in (1, 64):
            rows = np.ascontiguousarray(x[:batch])
            binding = session.io_binding()
            binding.bind_cpu_input("input", rows)
            for output in session.get_outputs():
                binding.bind_output(output.name)
            said = {
                "path": str(path),
                "name": name,
                "version": onnxruntime.__version__,
                "rows": rows.tolist(),
                "scores": np.asarray(session.run(None, {"input": rows})[-1]).ravel().tolist(),
                "median_us": median_us(lambda: session.run(None, {"input": rows}), repeats),
                "bound_median_us": median_us(lambda: session.run_with_iobinding(binding), repeats),
            }
            print(json.dumps(said))


if __name__ == "__main__":
    main()
