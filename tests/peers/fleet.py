"""The fleet under test as `demo.json` describes it, and the count of what held."""

import json
import os
import ssl
import subprocess
import time
import traceback
import urllib.request
from pathlib import Path

PATIENCE_S = 120


class Failed(Exception):
    """A check did not hold."""


def expect(holds, message):
    if not holds:
        raise Failed(message)


class Report:
    """One line for each check."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def check(self, name, run, *arguments):
        """Runs one check; what it returns is shown behind its name."""
        try:
            detail = run(*arguments)
        except Failed as failure:
            self._failed(name, str(failure))
        except Exception:
            self._failed(name, traceback.format_exc())
        else:
            self.passed += 1
            print(f"ok    {name}{f': {detail}' if detail else ''}", flush=True)
            return True
        return False

    def _failed(self, name, why):
        self.failed += 1
        indented = "\n".join(f"      {line}" for line in why.rstrip().splitlines())
        print(f"FAIL  {name}\n{indented}", flush=True)


def wait_for(what, probe, patience_s=PATIENCE_S):
    """Asks `probe` until it answers something true, and gives that."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = probe()
        if answer:
            return answer
        expect(time.monotonic() < deadline, f"{what}: not within {patience_s} s")
        time.sleep(0.1)


class Agent:
    """One device of the fleet."""

    def __init__(self, summary):
        self.id = summary["id"]
        self.pid = summary["pid"]
        self.inference_url = summary["inference_url"].rstrip("/")
        self.certificate = summary["certificate_file"]
        self.key = summary["key_file"]


class Controller:
    """The controller, its broker, and its operator at the command line."""

    def __init__(self, summary):
        self.url = summary["url"].rstrip("/")
        self.host = summary["broker_host"]
        self.port = summary["broker_port"]
        self.ca = summary["ca_file"]
        self.release_key = summary["release_key_file"]
        self._muster = summary["muster"]
        self._environment = {
            **os.environ,
            "MUSTER_URL": summary["url"],
            "MUSTER_TOKEN": summary["token"],
            "MUSTER_CA_FILE": summary["ca_file"],
        }

    def muster(self, *arguments):
        """Runs `muster` and gives what it printed."""
        return self._run(0, arguments).stdout

    def muster_refuses(self, status, *arguments):
        """Runs `muster`, which must end with `status`, and gives what it said against it."""
        return self._run(status, arguments).stderr

    def get(self, path):
        """What the API has under `path`, as JSON."""
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path):
        """What the API has under `path`."""
        url, token = self._environment["MUSTER_URL"].rstrip("/"), self._environment["MUSTER_TOKEN"]
        request = urllib.request.Request(f"{url}/api/v1/{path}", headers={"Authorization": f"Bearer {token}"})
        trust = ssl.create_default_context(cafile=self.ca)
        with urllib.request.urlopen(request, timeout=PATIENCE_S, context=trust) as response:
            return response.read()

    def _run(self, status, arguments):
        command = [self._muster, *(str(argument) for argument in arguments)]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        shown = " ".join(["muster", *command[1:]])
        expect(done.returncode == status, f"{shown} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def device(self, device):
        """A device as the controller knows it."""
        return json.loads(self.muster("device", "show", device, "--output", "json"))


def fixtures():
    return Path(__file__).resolve().parent.parent / "fixtures"
