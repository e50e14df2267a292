#!/usr/bin/env python3
"""Ask the agent on this device for predictions, with tritonclient over localhost.

    predict.py [--url 127.0.0.1:8600] [--model digits] [--input image] [--attempts 8] [--interval-s SECONDS] FILE.csv

Needs `tritonclient[http]`. Each line of FILE.csv is one input: a label, which is not sent, then the numbers. Prints for each
"LINE CLASS PROBABILITY MODEL@VERSION". With --interval-s it starts over when it is through, that many seconds later, until
SIGTERM or SIGINT stops it (exit status 0). What may pass (no agent yet, no model yet, too many requests) is tried --attempts
times with growing pauses, then the exit status is 1; what cannot pass ends it at once.
"""

import argparse
import csv
import random
import signal
import sys

# Blocked, and looked for where it is safe to stop: nothing is broken off in the middle. Before numpy, whose threads would take them.
STOP = {signal.SIGTERM, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, STOP)

import numpy as np  # noqa: E402
from tritonclient.http import InferenceServerClient, InferInput  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

# A request takes milliseconds; this bounds one to an agent that is stuck, in seconds.
TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
# 503: no model yet, or more requests than may wait.
MAY_PASS = {"408", "429", "503"}


class GivenUp(Exception):
    """There is no answer, and will not be one."""


class Stopped(Exception):
    """Somebody wants this program to end."""


def pause(seconds):
    """Sleeps, unless a signal comes."""
    if signal.sigtimedwait(STOP, seconds) is not None:
        raise Stopped


def pause_s(attempt):
    """Between half and all of the pause for this attempt, so that many programs do not come back together."""
    longest = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
    return random.uniform(longest / 2, longest)


def ask(client, arguments, row):
    """The agent's answer to one input."""
    values = np.array([row], dtype=np.float32)
    tensor = InferInput(arguments.input, list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    attempt = 0
    while True:
        attempt += 1
        try:
            return client.infer(arguments.model, [tensor])
        except InferenceServerException as error:
            if error.status() not in MAY_PASS:
                raise GivenUp(f"refused with {error.status()}: {error.message()}") from error
            why = error.message()
        except OSError as error:
            why = f"no answer from {arguments.url}: {error}"
        if attempt >= arguments.attempts:
            raise GivenUp(f"given up after {attempt} attempts: {why}")
        seconds = pause_s(attempt)
        print(f"trying again in {seconds:.2f} s: {why}", file=sys.stderr, flush=True)
        pause(seconds)


def rows(path):
    """The inputs in a file, without their labels; a heading and empty lines are skipped."""
    with open(path, newline="", encoding="utf-8") as file:
        for fields in csv.reader(file):
            if len(fields) < 2:
                continue
            try:
                yield [float(field) for field in fields[1:]]
            except ValueError:
                continue


def run(arguments):
    client = InferenceServerClient(arguments.url, connection_timeout=TIMEOUT_S, network_timeout=TIMEOUT_S)
    while True:
        for line, row in enumerate(rows(arguments.file), start=1):
            pause(0)
            answer = ask(client, arguments, row)
            said = answer.get_response()
            scores = answer.as_numpy(said["outputs"][0]["name"])[0]
            best = int(scores.argmax())
            print(line, best, f"{scores[best]:.9g}", f"{said['model_name']}@{said['model_version']}", flush=True)
        if arguments.interval_s is None:
            return
        pause(arguments.interval_s)


def main():
    parser = argparse.ArgumentParser(description="Ask the agent on this device for predictions.")
    parser.add_argument("--url", default="127.0.0.1:8600", help="host and port of [serve] listen")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--input", default="image", help="the name of the model's input")
    parser.add_argument("--attempts", type=int, default=8)
    parser.add_argument("--interval-s", type=float)
    parser.add_argument("file")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except Stopped:
        return
    except (GivenUp, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
