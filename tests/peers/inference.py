"""An agent answers as any other inference server would, and as onnxruntime does, for every model of the fixtures."""

import json
import subprocess
import sys
import urllib.error
import urllib.request

from fleet import expect, fixtures, wait_for

VERSION = "1.0.0"
PACE = ["--soak", "1s", "--max-duration", "10m", "--probation", "500ms"]


def peer(script, *arguments):
    """Runs a script of the fixtures; gives the last line before its `ok`."""
    command = [sys.executable, str(fixtures() / script), *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    expect(done.returncode == 0, f"{script} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    lines = [line for line in done.stdout.splitlines() if line != "ok"]
    return "; ".join(lines[-2:])


def is_ready(agent, model):
    try:
        with urllib.request.urlopen(f"{agent.inference_url}/v2/models/{model}/ready", timeout=10) as response:
            return response.status == 200
    except urllib.error.HTTPError:
        return False


def wait_until_served(controller, agent, model, rollout):
    """Waits until `agent` serves `model`; what the device or the rollout says against it ends the wait."""

    def served():
        if is_ready(agent, model):
            return True
        view = json.loads(controller.muster("rollout", "show", rollout, "--output", "json"))
        progress = {state for wave in view["waves"] for state in wave["devices"].values()}
        update = controller.device(agent.id)["reported"]["update"]
        expect("failed" not in progress, f"the device did not take it: {update['state']}: {update['reason']}")
        expect(view["status"] in ("ready", "running"), f"the rollout is {view['status']}: {view['status_reason']}")
        return False

    wait_for(f"{agent.id} serves {model}", served)


def committed(controller, agent, bundle):
    installed = controller.device(agent.id)["reported"]["committed"]
    return installed is not None and installed["bundle"] == bundle


def fixture_model(controller, agent, onnx, folder):
    """From an ONNX file to a device and back: build, sign, push, roll out, ask, compare."""
    model = onnx.stem
    cases = onnx.with_name(f"{model}.cases.json")
    description = folder / f"{model}.toml"
    fields = {
        "name": model,
        "version": VERSION,
        "description": "A fixture, compared with onnxruntime",
        "model": str(onnx),
        "golden": str(cases),
    }
    # A JSON string is a TOML string as well.
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    description.write_text("\n".join(["release-counter = 1", *lines, ""]))
    built = folder / model
    controller.muster("bundle", "build", description, "--out", built)
    controller.muster("bundle", "sign", built, "--key", controller.release_key)
    controller.muster("bundle", "push", built)

    bundle = f"{model}@{VERSION}"
    create = ["rollout", "create", "--bundle", bundle, "--selector", f"id={agent.id}", *PACE, "--output", "json"]
    rollout = json.loads(controller.muster(*create))["id"]
    try:
        wait_until_served(controller, agent, model, rollout)
        said = compare(agent, model, onnx, cases)
        # On probation it could still go back, and the next model would meet that.
        wait_for(f"{agent.id} commits {bundle}", lambda: committed(controller, agent, bundle))
    finally:
        controller.muster("rollout", "abort", rollout, "--reason", "the comparison is done")
    return said


def compare(agent, model, onnx, cases, *more):
    where = ["--url", agent.inference_url, "--model", model, "--onnx", onnx, "--cases", cases]
    return peer("peer_onnxruntime.py", *where, *more)


def digits(agent):
    folder = fixtures() / "digits"
    heldout = ["--heldout", folder / "heldout.csv", "--input", "image"]
    return compare(agent, "digits", folder / "digits-1.1.0.onnx", folder / "golden-1.1.0.json", *heldout)


def tritonclient(agent):
    where = ["--url", agent.inference_url, "--model", "digits"]
    return peer("peer_tritonclient.py", *where, "--heldout", fixtures() / "digits/heldout.csv")


def check(report, controller, agent, folder):
    """Every check of inference, on `agent`, which serves digits 1.1.0."""
    report.check("tritonclient: health, metadata, JSON and binary tensors", tritonclient, agent)
    report.check("onnxruntime: digits, golden and held-out images", digits, agent)
    models = sorted((fixtures() / "models").glob("*.onnx"))
    for onnx in (path for path in models if not path.name.startswith("refuse-")):
        report.check(f"onnxruntime: {onnx.stem}, rolled out", fixture_model, controller, agent, onnx, folder)
