"""What linking and tracing share: how the functions of a program are known again in another build of it.

A place is the path of a function in the source, without generic arguments and without the compiler's own marks, so that it names the same
code in every build and for every processor. Of code that is compiled for many types, only what was compiled for the right ones is wanted:
behind the path stands a mark for these, which follows from their names. A C function is its own place.
"""

import hashlib
import pathlib
import re
import subprocess

# Which of these run depends on the processor, and qemu's is another one than a board's.
FAMILIES = ("tract_linalg::", "<tract_linalg::", "ring_core_", "ring::", "curve25519_dalek::backend::", "sha2::", "x25519_", "ge_")
LIST = pathlib.Path(__file__).with_name("places.txt")
MARK = 8
_HASH = re.compile(r"::h[0-9a-f]{16}(\.llvm\.\d+)?$")
_CRATE = re.compile(r"\[[0-9a-f]{10,16}\]")
_CLONE = re.compile(r" \[clone [^\]]*\]|\.\d+$")


def _without_generics(path):
    """`a::B::<C>::d` is `a::B::d`; of `<a::B<C> as D<E>>::f` only what is inside the outer brackets stays."""
    qualified = path.startswith("<")
    kept, depth = [], 0
    for before, character in zip("\0" + path, path):
        if character == ">" and before != "-":
            if qualified and depth == 1:
                kept.append(character)
            depth -= 1
            continue
        if character == "<":
            depth += 1
            if not (qualified and depth == 1):
                continue
        if depth == 0 or (qualified and depth == 1):
            kept.append(character)
    return "".join(kept).replace("::::", "::").removesuffix("::")


def place(demangled):
    """The place of the function with this demangled name, with its mark where it has one."""
    whole = _CRATE.sub("", _CLONE.sub("", _HASH.sub("", demangled)))
    path = _without_generics(whole)
    return path if path == whole else f"{path} {hashlib.sha256(whole.encode()).hexdigest()[:MARK]}"


def of_symbols(symbols):
    """The place of each of these mangled names, in their order."""
    if not symbols:
        return []
    demangled = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return [place(name) for name in demangled.stdout.splitlines()]


def write(listed, header):
    """Writes the list of these places: a line for each path, with its marks."""
    marks = {}
    for name in listed:
        path, _, mark = name.rpartition(" ") if re.search(rf" [0-9a-f]{{{MARK}}}$", name) else (name, "", "")
        marks.setdefault(path, []).append(mark)
    lines = (" ".join([path, *sorted(filter(None, own))]) + (" -" if "" in own and len(own) > 1 else "") for path, own in sorted(marks.items()))
    LIST.write_text(header + "\n".join(lines) + "\n")


class Wanted:
    """The places in the list, and the families."""

    def __init__(self):
        self._listed = set()
        for line in LIST.read_text().splitlines():
            if line and not line.startswith("#"):
                marks = re.search(rf"((?: [0-9a-f]{{{MARK}}})*)( -)?$", line)
                path = line[: marks.start()]
                self._listed.update(f"{path} {mark}" for mark in marks[1].split())
                if marks[2] or not marks[1]:
                    self._listed.add(path)

    def __contains__(self, name):
        return name in self._listed or name.startswith(FAMILIES)
