"""Samples for retraining: pyarrow and pandas read what was sent, and another implementation of HPKE opens what is sealed."""

import csv
import json
import struct
import urllib.request

import numpy
import pandas
import pyarrow.parquet
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet import expect, fixtures, wait_for

COUNT = 40


def images():
    with open(fixtures() / "digits" / "heldout.csv", newline="") as file:
        rows = list(csv.reader(file))[1 : COUNT + 1]
    return numpy.array([[float(value) for value in row[1:]] for row in rows], dtype=numpy.float32)


def served(controller, agent):
    return controller.device(agent.id)["reported"]["running"]["bundle"]


def ask(agent, model, at, image):
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 64], "data": image.tolist()}
    body = json.dumps({"id": f"peer-{at}", "inputs": [tensor]}).encode()
    url = f"{agent.inference_url}/v2/models/{model}/infer"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)["outputs"][0]["data"]


def show(controller, collection):
    return json.loads(controller.muster("samples", "show", collection, "--output", "json"))


def progress(controller, collection, agent):
    for device in show(controller, collection)["devices"]:
        if device["device"] == agent.id and device["progress"]:
            return device["progress"]
    return {}


class Collected:
    """What one collection brought, and what was sent for it."""

    def __init__(self, controller, agent, folder):
        self.key, self.file = folder / "samples.key", folder / "samples.parquet"
        self.agent, self.controller = agent, controller
        bundle = served(controller, agent)
        controller.muster("samples", "key", "create", "--out", str(self.key))
        opened = controller.muster(
            "samples", "open", "--bundle", bundle, "--selector", f"id={agent.id}", "--recipient", f"{self.key}.pub",
            "--random", "1", "--count", "1000", "--output", "json",
        )
        self.id = json.loads(opened)["id"]
        wait_for("the device samples", lambda: progress(controller, self.id, agent).get("stage") == "sampling")
        self.images = images()
        self.answers = [ask(agent, bundle.split("@")[0], at, image) for at, image in enumerate(self.images)]
        wait_for("the samples are held", lambda: progress(controller, self.id, agent).get("held", 0) >= COUNT)
        controller.muster("samples", "close", self.id)
        wait_for("the samples are uploaded", lambda: progress(controller, self.id, agent).get("stage") == "uploaded")
        controller.muster("samples", "export", self.id, "--key", str(self.key), "--out", str(self.file))


def pyarrow_reads(collected):
    table = pyarrow.parquet.read_table(collected.file)
    # The demo's own traffic is in there as well.
    rows = {row["id"]: row for row in table.to_pylist()}
    expect(all(f"peer-{at}" in rows for at in range(COUNT)), f"ids are missing among {len(rows)} rows")
    pixels = [name for name in table.column_names if name.startswith("input.")]
    expect(len(pixels) == 64, f"{len(pixels)} input columns: {pixels[:5]}")
    for at, (image, answer) in enumerate(zip(collected.images, collected.answers)):
        row = rows[f"peer-{at}"]
        names = {name: row[name] for name in pixels}
        values = numpy.array(list(names.values()), dtype=numpy.float32)
        expect(sorted(values.tolist()) == sorted(image.tolist()), f"the input of peer-{at} is another")
        outputs = [row[name] for name in table.column_names if name.startswith("output.")]
        found = outputs[0] if isinstance(outputs[0], list) else outputs
        same = numpy.array_equal(numpy.sort(numpy.float32(found)), numpy.sort(numpy.float32(answer)))
        expect(same, f"the output of peer-{at} is another")
        expect(row["device"] == collected.agent.id, f"peer-{at} is of {row['device']}")
    expect(str(table.schema.field("time").type) == "timestamp[ms, tz=UTC]", str(table.schema.field("time").type))
    metadata = table.schema.metadata
    lineage = json.loads(metadata[b"muster.lineage"])
    expect(lineage[0]["lineage"].get("dataset"), f"no lineage: {lineage}")
    expect(json.loads(metadata[b"muster.collection"])["id"] == collected.id, "another collection")
    return f"{table.num_rows} rows, {table.num_columns} columns, trained on {lineage[0]['lineage']['dataset']!r}"


def pandas_reads(collected):
    frame = pandas.read_parquet(collected.file)
    frame = frame[frame["id"].str.startswith("peer-")].set_index("id")
    for at, image in enumerate(collected.images):
        # In the order of the reference sample: the columns are named by it.
        columns = [f"input.{name}" for name in feature_names(collected)]
        found = frame.loc[f"peer-{at}", columns].to_numpy(dtype=numpy.float32)
        expect(numpy.array_equal(found, image), f"peer-{at}: {found[:8]} is not {image[:8]}")
    return f"{len(frame)} rows equal to what was sent"


def feature_names(collected):
    name, version = served(collected.controller, collected.agent).split("@")
    bundle = collected.controller.get(f"bundles/{name}/{version}")
    columns = bundle["manifest"]["profile"]["columns"]
    inputs = [column for column in columns if column["source"]["from"] == "input"]
    return [column["name"] for column in sorted(inputs, key=lambda column: column["source"]["index"])]


def another_hpke_opens(collected):
    sealed = collected.controller.get_bytes(f"collections/{collected.id}/export")
    secret = X25519PrivateKey.from_private_bytes(bytes.fromhex(collected.key.read_text().strip()))
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
    opened = []
    while sealed:
        (length,) = struct.unpack_from("<I", sealed)
        batch = json.loads(sealed[4 : 4 + length])
        content, sealed = sealed[4 + length : 4 + length + batch["bytes"]], sealed[4 + length + batch["bytes"] :]
        info = b"\0".join([b"muster/sample/v1", collected.id.encode(), batch["device"].encode()])
        while content:
            (length,) = struct.unpack_from("<I", content)
            opened.append(suite.decrypt(content[4 : 4 + length], secret, info=info))
            content = content[4 + length :]
    for at, image in enumerate(collected.images):
        found = [sample for sample in opened if f"peer-{at}".encode() in sample and image.tobytes() in sample]
        expect(found, f"peer-{at} is not among {len(opened)} samples")
    return f"{len(opened)} samples"


def check(report, controller, agent, folder):
    holder = {}

    def collect():
        holder["collected"] = Collected(controller, agent, folder)
        return f"{COUNT} inferences of {agent.id}"

    if report.check("samples: a device collects and uploads", collect):
        report.check("samples: pyarrow reads what was sent", pyarrow_reads, holder["collected"])
        report.check("samples: pandas reads what was sent", pandas_reads, holder["collected"])
        report.check("samples: cryptography's HPKE opens what is sealed", another_hpke_opens, holder["collected"])
