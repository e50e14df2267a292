"""A signed document of Muster's is one of securesystemslib's, and the other way round: both speak DSSE and ed25519.

Whatever is refused here is refused by both, and was taken by both before it was changed.
"""

import copy
import hashlib
import json
import tomllib
from base64 import b64decode, b64encode

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from fleet import expect, fixtures

VERSION = "1.0.0"
MANIFEST_TYPE = "application/vnd.muster.manifest.v1+json"
ROOT_TYPE = "application/vnd.muster.root.v1+json"
UNMET, INPUT, REFUSED = 1, 2, 3


def read(path):
    return json.loads(path.read_text())


def write(path, document):
    path.write_text(json.dumps(document))


def envelope_of(document):
    # It changes what it reads.
    return Envelope.from_dict(copy.deepcopy(document))


def described(name, folder):
    """The description of a bundle called `name`, of a model of the fixtures."""
    digits = fixtures() / "digits"
    fields = {
        "name": name,
        "version": VERSION,
        "description": "Signed by another program",
        "model": str(digits / "digits-1.0.0.onnx"),
        "golden": str(digits / "golden-1.0.0.json"),
    }
    description = folder / f"{name}.toml"
    # A JSON string is a TOML string as well.
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    description.write_text("\n".join(["release-counter = 1", *lines, ""]))
    return description


class Desk:
    """Keys, a root document and a bundle, as `muster` makes them, beside a key of securesystemslib's."""

    def __init__(self, controller, folder):
        self._controller = controller
        self._folder = folder
        self.muster = controller.muster
        self.refuses = controller.muster_refuses
        self.signer = CryptoSigner.generate_ed25519()
        self.stranger = CryptoSigner.generate_ed25519()
        self.public = self.path("other.pub")
        self.public.write_text(self.signer.public_key.keyval["public"] + "\n")
        for name in ("root", "release", "director", "stranger"):
            self.muster("key", "generate", "--out", self.path(name))
        self.root = self._init_root("root.json", 1)
        self.root_of_two = self._init_root("root-of-two.json", 2)
        self.bundle = self.path("bundle")
        self.manifest = self.bundle / "manifest.json"
        self.muster("bundle", "build", described("peer-envelope", folder), "--out", self.bundle)
        self.unsigned = read(self.manifest)

    def path(self, name):
        return self._folder / name

    def _init_root(self, name, release_threshold):
        keys = ["--root-key", self.path("root"), "--director-key", self.path("director.pub")]
        release = ["--release-key", self.path("release.pub"), self.public, "--release-threshold", release_threshold]
        self.muster("root", "init", *keys, *release, "--out", self.path(name))
        return self.path(name)

    def key(self, name):
        """A key of Muster's as securesystemslib knows keys."""
        shown = json.loads(self.muster("key", "show", self.path(f"{name}.pub"), "--output", "json"))
        return SSlibKey(shown["key_id"], "ed25519", "ed25519", {"public": shown["public_key"]})

    def signed_here(self):
        write(self.manifest, self.unsigned)
        self.muster("bundle", "sign", self.bundle, "--key", self.path("release"))
        return read(self.manifest)

    def signed_there(self, signer, payload_type=MANIFEST_TYPE):
        return sign(self.unsigned, signer, payload_type)

    def takes_bundle(self, document, root=None):
        write(self.manifest, document)
        self.muster("bundle", "verify", self.bundle, "--root", root or self.root)

    def refuses_bundle(self, document, because, root=None):
        write(self.manifest, document)
        said = self.refuses(UNMET, "bundle", "verify", self.bundle, "--root", root or self.root)
        expect(because in said, f"it was refused, but not because {because!r}: {said}")

    def refuses_push(self, document):
        write(self.manifest, document)
        said = self.refuses(REFUSED, "bundle", "push", self.bundle)
        expect("0 of 1 required signatures" in said, f"it was refused for another reason: {said}")


def sign(document, signer, payload_type):
    """`document` with a signature of securesystemslib's, over its content as `payload_type`."""
    envelope = envelope_of(document)
    envelope.payload_type = payload_type
    envelope.sign(signer)
    return envelope.to_dict()


def with_a_byte_changed(document):
    """The same document, still JSON, with another byte in its content."""
    content = b64decode(document["payload"])
    at = content.index(b'"')
    changed = content[: at + 1] + bytes([content[at + 1] ^ 1]) + content[at + 2 :]
    return {**document, "payload": b64encode(changed).decode()}


def with_a_word_changed(document):
    """A manifest whose form is right still, so that nothing but the signature speaks against it."""
    content = b64decode(document["payload"])
    changed = content.replace(b"Signed by another", b"Signed by onother")
    expect(changed != content, "the manifest does not hold its description")
    return {**document, "payload": b64encode(changed).decode()}


def refused_there(document, key):
    try:
        envelope_of(document).verify([key], 1)
    except VerificationError:
        return
    expect(False, "securesystemslib took it")


def taken_there(document, key):
    accepted = envelope_of(document).verify([key], 1)
    expect(list(accepted) == [key.keyid], f"securesystemslib names other signers: {list(accepted)}")


def manifest_is_read(desk):
    document = desk.signed_here()
    taken_there(document, desk.key("release"))
    expect(document["payloadType"] == MANIFEST_TYPE, f"it is a {document['payloadType']}")
    return f"{len(envelope_of(document).payload)} bytes"


def root_is_read(desk):
    document = read(desk.root)
    taken_there(document, desk.key("root"))
    expect(document["payloadType"] == ROOT_TYPE, f"it is a {document['payloadType']}")


def changes_are_refused_there(desk):
    for document, name in ((desk.signed_here(), "release"), (read(desk.root), "root")):
        key = desk.key(name)
        taken_there(document, key)
        refused_there(with_a_byte_changed(document), key)
        for other in (MANIFEST_TYPE, ROOT_TYPE):
            if other != document["payloadType"]:
                refused_there({**document, "payloadType": other}, key)
        stranger = desk.key("stranger")
        refused_there(document, stranger)
        # Under the name of the key that has signed, too.
        refused_there(document, SSlibKey(key.keyid, "ed25519", "ed25519", stranger.keyval))


def manifest_is_taken(desk):
    document = desk.signed_there(desk.signer)
    taken_there(document, desk.signer.public_key)
    desk.takes_bundle(document)


def both_sign_one_manifest(desk):
    """Two signatures are asked for: one of each side's."""
    one = desk.signed_here()
    desk.refuses_bundle(one, "1 of 2 required signatures", desk.root_of_two)
    both = sign(one, desk.signer, MANIFEST_TYPE)
    keys = [desk.key("release"), desk.signer.public_key]
    expect(len(envelope_of(both).verify(keys, 2)) == 2, "securesystemslib counts otherwise")
    desk.takes_bundle(both, desk.root_of_two)


def changes_are_refused_here(desk):
    document = desk.signed_there(desk.signer)
    desk.takes_bundle(document)
    none = "0 of 1 required signatures"
    desk.refuses_bundle(with_a_word_changed(document), none)
    desk.refuses_bundle(desk.signed_there(desk.stranger), none)
    renamed = desk.signed_there(desk.stranger)
    renamed["signatures"][0]["keyid"] = document["signatures"][0]["keyid"]
    desk.refuses_bundle(renamed, none)
    as_root = desk.signed_there(desk.signer, ROOT_TYPE)
    desk.refuses_bundle(as_root, "not a manifest")
    desk.refuses_bundle({**as_root, "payloadType": MANIFEST_TYPE}, none)


def root_is_taken(desk):
    """A root document that only securesystemslib's key can complete, as one of two signers."""
    following = desk.path("root-2.json")
    changes = ["--add-root-key", desk.public, "--root-threshold", "2", "--sign-with", desk.path("root")]
    desk.muster("root", "rotate", desk.root, *changes, "--out", following)
    half = read(following)
    show = ["root", "show", following, "--previous", desk.root]
    desk.refuses(UNMET, *show)
    refused_there(half, desk.signer.public_key)
    whole = sign(half, desk.signer, ROOT_TYPE)
    write(following, whole)
    desk.muster(*show)
    taken_there(whole, desk.signer.public_key)
    for bad in (
        with_a_word_changed_root(whole),
        sign(half, desk.stranger, ROOT_TYPE),
        {**sign(half, desk.signer, MANIFEST_TYPE), "payloadType": ROOT_TYPE},
        {**whole, "payloadType": MANIFEST_TYPE},
    ):
        write(following, bad)
        desk.refuses(UNMET, *show)


def with_a_word_changed_root(document):
    """A root document of another date."""
    root = json.loads(b64decode(document["payload"]))
    root["expires_ms"] += 1
    return {**document, "payload": b64encode(json.dumps(root).encode()).decode()}


def encrypted_keys_are_shared(desk):
    """A key that muster encrypted signs there, and one that was encrypted there signs here."""
    passphrase = b"correct horse battery"
    file = desk.path("passphrase")
    file.write_bytes(passphrase)
    file.chmod(0o600)
    ours = desk.path("release").read_bytes()
    desk.muster("key", "encrypt", desk.path("release"), "--key-passphrase-file", file)
    private = load_pem_private_key(desk.path("release").read_bytes(), passphrase)
    desk.takes_bundle(desk.signed_there(CryptoSigner(private)))
    desk.path("release").write_bytes(ours)

    private = Ed25519PrivateKey.generate()
    theirs = desk.path("theirs.pem")
    encryption = BestAvailableEncryption(passphrase)
    theirs.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    theirs.chmod(0o600)
    write(desk.manifest, desk.unsigned)
    desk.muster("bundle", "sign", desk.bundle, "--key", theirs, "--key-passphrase-file", file)
    taken_there(read(desk.manifest), named_as_here(private))
    file.write_bytes(b"incorrect horse battery")
    said = desk.refuses(INPUT, "bundle", "sign", desk.bundle, "--key", theirs, "--key-passphrase-file", file)
    expect("passphrase is wrong" in said, f"it was refused for another reason: {said}")


def named_as_here(private):
    """The public half under the name that Muster gives it."""
    public = private.public_key().public_bytes_raw()
    return SSlibKey(hashlib.sha256(public).hexdigest(), "ed25519", "ed25519", {"public": public.hex()})


def fleet_takes_it(desk, controller):
    """The running controller, which trusts the demo's release key, used here from Python alone."""
    with open(controller.release_key, "rb") as file:
        seed = bytes.fromhex(tomllib.load(file)["seed"])
    signer = CryptoSigner(Ed25519PrivateKey.from_private_bytes(seed))
    document = desk.signed_there(signer)
    desk.refuses_push(desk.signed_there(desk.stranger))
    desk.refuses_push(with_a_word_changed(document))
    desk.refuses_push({**desk.signed_there(signer, ROOT_TYPE), "payloadType": MANIFEST_TYPE})
    write(desk.manifest, document)
    desk.muster("bundle", "push", desk.bundle)
    shown = json.loads(desk.muster("bundle", "show", f"peer-envelope@{VERSION}", "--output", "json"))
    digest = hashlib.sha256(b64decode(document["payload"])).hexdigest()
    expect(shown["manifest_digest"].endswith(digest), f"the controller holds another: {shown}")


def check(report, controller, folder):
    """Every check of signed documents."""
    desk = Desk(controller, folder)

    def run(name, what, *arguments):
        report.check(f"securesystemslib: {name}", what, desk, *arguments)

    run("a manifest that muster signed verifies", manifest_is_read)
    run("a root document that muster signed verifies", root_is_read)
    run("changed content, another type, a wrong key are refused there", changes_are_refused_there)
    run("a manifest signed there verifies here", manifest_is_taken)
    run("both sign one manifest", both_sign_one_manifest)
    run("changed content, another type, a wrong key are refused here", changes_are_refused_here)
    run("a root document signed there follows one signed here", root_is_taken)
    run("encrypted keys are read on both sides", encrypted_keys_are_shared)
    run("the controller takes a bundle signed there", fleet_takes_it, controller)
