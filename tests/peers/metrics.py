"""Metrics in the eyes of a real Prometheus: promtool reads both programs' pages, and every query of the dashboard finds something."""

import json
import re
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from fleet import Failed, expect, wait_for

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 90
# What Grafana fills in.
VARIABLES = {"$__rate_interval": "20s", "$bundle": ".*", "$group": ".*"}


def fetch(url, ca=None):
    context = ssl.create_default_context(cafile=ca) if ca else None
    with urllib.request.urlopen(url, context=context, timeout=30) as answer:
        return answer.read().decode()


def promtool_takes(page):
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"promtool check metrics: {done.stdout}{done.stderr}")
    return f"{sum(line.startswith('# TYPE') for line in page.splitlines())} families"


def rules_hold():
    path = ROOT / "docs/prometheus/muster.rules.yml"
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"promtool check rules: {done.stdout}{done.stderr}")


def queries():
    """Title and expression of every query of the dashboard."""
    dashboard = json.loads((ROOT / "docs/grafana/muster.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            text = target["expr"]
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            left = re.search(r"\$\w+", text)
            expect(not left, f"{panel['title']}: nobody fills in {left and left.group()}")
            yield panel["title"], text


class Prometheus:
    """Scrapes the fleet for as long as it is held."""

    def __init__(self, controller, agents, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        host = lambda url: urllib.parse.urlsplit(url).netloc
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {
                    "job_name": "muster-controller",
                    "scheme": "https",
                    "tls_config": {"ca_file": str(controller.ca)},
                    "static_configs": [{"targets": [host(controller.url)]}],
                },
                {
                    "job_name": "muster-agent",
                    "static_configs": [{"targets": [host(agent.inference_url) for agent in agents]}],
                },
            ],
            "rule_files": [str(ROOT / "docs/prometheus/muster.rules.yml")],
        }
        # JSON is YAML.
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self.log = (folder / "prometheus.log").open("w")
        command = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()

    def get(self, path, **query):
        expect(self.process.poll() is None, "Prometheus ended")
        try:
            return json.loads(fetch(f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(query)}"))["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                # It listens and is not ready yet.
                return None
            raise Failed(f"{query}: {error.read().decode()}") from error
        except urllib.error.URLError:
            # It has not come up yet.
            return None

    def all_targets_are_up(self, count):
        def up():
            found = self.get("/api/v1/targets", state="active")
            targets = found["activeTargets"] if found else []
            return len(targets) == count and all(target["health"] == "up" for target in targets)

        wait_for("every target is up", up, PATIENCE_S)
        return f"{count} targets"

    def finds(self, expression):
        found = lambda: (self.get("/api/v1/query", query=expression) or {}).get("result")
        series = wait_for(f"{expression} finds something", found, PATIENCE_S)
        values = [sample["value"][1] for sample in series]
        expect("NaN" not in values or set(values) != {"NaN"}, f"{expression} finds only NaN")
        return f"{len(series)} series"


def check(report, controller, agents, folder):
    if not (shutil.which("prometheus") and shutil.which("promtool")):
        print("skip  metrics: prometheus and promtool are not installed", flush=True)
        return
    report.check("promtool takes the controller's metrics", lambda: promtool_takes(fetch(f"{controller.url}/metrics", controller.ca)))
    report.check("promtool takes an agent's metrics", lambda: promtool_takes(fetch(f"{agents[0].inference_url}/metrics")))
    report.check("promtool takes the rules", rules_hold)
    with Prometheus(controller, agents, folder) as prometheus:
        if report.check("Prometheus scrapes the fleet", prometheus.all_targets_are_up, len(agents) + 1):
            for title, expression in queries():
                report.check(f"dashboard: {title}", prometheus.finds, expression)
