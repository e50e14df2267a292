"""A device's certificate opens its own topics and no others, seen by the mosquitto clients.

A refusal counts only where the same client with the same papers is let in where it belongs: those checks come first.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time

from fleet import expect, wait_for

VERSIONS = ("mqttv311", "mqttv5")
# A client whose connection is closed tries again for ever; by then it has said all it has to say.
CLIENT_S = 10
OFFLINE = json.dumps({"online": False})
ONLINE = json.dumps({"online": True})


class Client:
    """What one run of a mosquitto client said."""

    def __init__(self, command):
        try:
            # A client that is ended from outside loses what it has buffered.
            done = subprocess.run(
                ["stdbuf", "-oL", "-eL", *command], capture_output=True, timeout=CLIENT_S, check=False
            )
            self.ended, out, err = True, done.stdout, done.stderr
            self.status = done.returncode
        except subprocess.TimeoutExpired as error:
            self.ended, out, err = False, error.stdout or b"", error.stderr or b""
            self.status = None
        self.said = (out + err).decode(errors="replace")
        self.tried = "sending CONNECT" in self.said
        self.connected = "received CONNACK (0)" in self.said
        codes = re.findall(r"Subscribed \(mid: \d+\): ([\d, ]+)", self.said)
        self.codes = [int(code) for line in codes for code in line.split(",")]

    def granted(self):
        return bool(self.codes) and all(code <= 2 for code in self.codes)

    def refused_subscription(self):
        """By an answer that says so, or by a closed connection; silence is no refusal."""
        if self.codes:
            return all(code >= 128 for code in self.codes)
        return re.search(r"connection was lost|received DISCONNECT", self.said, re.IGNORECASE) is not None


class Broker:
    """Runs mosquitto clients against the fleet's broker."""

    def __init__(self, controller):
        self._common = ["-h", controller.host, "-p", str(controller.port), "--cafile", controller.ca, "-d", "-q", "1"]

    def _run(self, program, client_id, papers, version, arguments):
        certificate = ["--cert", papers[0], "--key", papers[1]] if papers else []
        return Client([program, *self._common, *certificate, "-i", client_id, "-V", version, *arguments])

    def subscribe(self, client_id, papers, version, topic, *more):
        return self._run("mosquitto_sub", client_id, papers, version, ["-t", topic, "-E", *more])

    def publish(self, client_id, papers, version, topic, message):
        return self._run("mosquitto_pub", client_id, papers, version, ["-t", topic, "-m", message])


def topic(device, rest):
    return f"muster/v1/d/{device}/{rest}"


def stop(controller, agent):
    os.kill(agent.pid, signal.SIGTERM)
    wait_for(f"{agent.id} is offline", lambda: not controller.device(agent.id)["online"])


def own_topics(broker, agent, version):
    for filter_ in (topic(agent.id, "down/+"), topic(agent.id, "down/assignment"), topic(agent.id, "down/#")):
        client = broker.subscribe(agent.id, papers(agent), version, filter_)
        expect(client.connected and client.granted(), f"{filter_} was not granted:\n{client.said}")


def papers(agent):
    return agent.certificate, agent.key


def refused_filter(broker, agent, version, filter_):
    client = broker.subscribe(agent.id, papers(agent), version, filter_)
    expect(client.connected, f"no connection:\n{client.said}")
    expect(not client.granted(), f"it was granted:\n{client.said}")
    expect(client.refused_subscription(), f"it was neither granted nor refused:\n{client.said}")


def refused_connection(client):
    expect(client.tried, f"the client did not even try:\n{client.said}")
    expect(not client.connected, f"it was let in:\n{client.said}")
    expect(not client.codes, f"it was let in:\n{client.said}")


def foreign_publish(controller, broker, agent, other, version):
    """Tries to take `other` offline; the controller must have dealt with it and not believed it."""
    before = controller.device(other.id)
    expect(before["online"], f"{other.id} is not online to begin with")
    heard = controller.device(agent.id)["last_seen_ms"] or 0
    client = broker.publish(agent.id, papers(agent), version, topic(other.id, "up/presence"), OFFLINE)
    expect(client.connected, f"no connection:\n{client.said}")
    # What was said later on the own topic has been heard: then so has what was said before.
    time.sleep(0.01)
    own = broker.publish(agent.id, papers(agent), version, topic(agent.id, "up/presence"), ONLINE)
    expect(own.connected and own.status == 0, f"the own topic does not work:\n{own.said}")
    wait_for(f"{agent.id} has been heard", lambda: (controller.device(agent.id)["last_seen_ms"] or 0) > heard)
    unharmed(controller, other, before)


def unharmed(controller, other, before):
    after = controller.device(other.id)
    expect(after["online"], f"{other.id} was taken offline by a stranger")
    for field in ("generation", "running", "starts"):
        was, is_ = before["reported"][field], after["reported"][field]
        expect(was == is_, f"a stranger spoke for {other.id}: {field} was {was}, is {is_}")


def own_will(broker, agent, version):
    will = ["--will-topic", topic(agent.id, "up/presence"), "--will-payload", OFFLINE]
    client = broker.subscribe(agent.id, papers(agent), version, topic(agent.id, "down/+"), *will)
    expect(client.connected and client.granted(), f"a will on the own topic must be let in:\n{client.said}")


def foreign_will(controller, broker, agent, other, version):
    before = controller.device(other.id)
    will = ["--will-topic", topic(other.id, "up/presence"), "--will-payload", OFFLINE]
    refused_connection(broker.subscribe(agent.id, papers(agent), version, topic(agent.id, "down/+"), *will))
    unharmed(controller, other, before)


def forged_client_id(controller, broker, agent, other, version):
    before = controller.device(other.id)
    refused_connection(broker.subscribe(other.id, papers(agent), version, topic(other.id, "down/+")))
    unharmed(controller, other, before)


def no_certificate(broker, agent, version):
    refused_connection(broker.subscribe(agent.id, None, version, topic(agent.id, "down/+")))


def forged_certificate(broker, agent, version, folder):
    """The right name, signed by nobody the broker trusts."""
    expect(shutil.which("openssl"), "openssl is not installed")
    key, certificate = folder / "forged.key", folder / "forged.pem"
    if not certificate.exists():
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1".split()
        subject = ["-subj", f"/CN={agent.id}", "-keyout", str(key), "-out", str(certificate)]
        made = subprocess.run([*command, *subject], capture_output=True, text=True, check=False)
        expect(made.returncode == 0, f"openssl made no certificate: {made.stderr}")
    forged = (str(certificate), str(key))
    refused_connection(broker.subscribe(agent.id, forged, version, topic(agent.id, "down/+")))


def foreign_filters(own, other):
    return [
        "#",
        "muster/#",
        "+/+/+/+/+/+",
        "muster/v1/d/+/down/+",
        "muster/v1/d/+/up/state",
        topic(other, "down/+"),
        topic(other, "down/assignment"),
        topic(other, "up/presence"),
        topic(other, "#"),
        topic(own, "#"),
        topic(own + "0", "down/+"),
        f"$share/group/{topic(own, 'down/+')}",
        f"$share/group/{topic(other, 'down/+')}",
        "$SYS/#",
    ]


def check(report, controller, agent, other, folder):
    """Every check of topics: with the papers of `agent`, which is stopped first, against `other`."""
    broker = Broker(controller)
    if not report.check(f"topics: {agent.id} stops and is seen to be offline", stop, controller, agent):
        return
    for version in VERSIONS:

        def run(name, what, *arguments):
            report.check(f"topics, {version}: {name}", what, *arguments)

        run("a device subscribes to its own topics", own_topics, broker, agent, version)
        for filter_ in foreign_filters(agent.id, other.id):
            run(f"{filter_} is refused", refused_filter, broker, agent, version, filter_)
        run("nobody speaks for another device", foreign_publish, controller, broker, agent, other, version)
        run("a will on the own topic is let in", own_will, broker, agent, version)
        run("a will on another's topic is not", foreign_will, controller, broker, agent, other, version)
        run("another device's client id is refused", forged_client_id, controller, broker, agent, other, version)
        run("no certificate, no connection", no_certificate, broker, agent, version)
        run("a certificate of one's own making opens nothing", forged_certificate, broker, agent, version, folder)
