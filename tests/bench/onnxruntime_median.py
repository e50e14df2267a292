"""Time onnxruntime on one thread, batch 1, and print a JSON object with the times in microseconds.

    python onnxruntime_median.py --onnx digits-1.1.0.onnx --heldout heldout.csv --requests 6000

`median_us` is of `session.run`, which is what an application calls; `bound_median_us` is of `run_with_iobinding` on buffers
bound before, which leaves out most of what Python adds.
"""

import argparse
import csv
import json
import time

import numpy as np
import onnxruntime


def times_us(run, count, warm_up):
    for turn in range(warm_up):
        run(turn)
    times = np.empty(count)
    for turn in range(count):
        started = time.perf_counter_ns()
        run(turn)
        times[turn] = (time.perf_counter_ns() - started) / 1_000
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", required=True)
    parser.add_argument("--heldout", required=True, help="CSV with header label,p0,...")
    parser.add_argument("--requests", type=int, default=6000)
    arguments = parser.parse_args()

    with open(arguments.heldout, newline="") as file:
        rows = np.array(list(csv.reader(file))[1:], dtype=np.float32)[:, 1:]
    images = [np.ascontiguousarray(row[None, :]) for row in rows]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(arguments.onnx, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]

    plain = times_us(lambda turn: session.run(outputs, {name: images[turn % len(images)]}), arguments.requests, 500)

    binding = session.io_binding()
    binding.bind_cpu_input(name, images[0])
    for output in outputs:
        binding.bind_output(output)
    bound = times_us(lambda turn: session.run_with_iobinding(binding), arguments.requests, 500)

    print(
        json.dumps(
            {
                "version": onnxruntime.__version__,
                "median_us": float(np.median(plain)),
                "p99_us": float(np.percentile(plain, 99)),
                "bound_median_us": float(np.median(bound)),
            }
        )
    )


if __name__ == "__main__":
    main()
