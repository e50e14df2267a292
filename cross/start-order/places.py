"""What linking and tracing share: the place in the source that a compiled function comes from.

A place is the path of a function's module or type, without generic arguments and without the compiler's own marks, so that it names the
same code in every build and for every processor. A C function is its own place.
"""

import pathlib
import re
import subprocess

# Which of these run depends on the processor, and qemu's is another one than a board's.
FAMILIES = ("tract_linalg::", "<tract_linalg::", "ring_core_", "ring::", "curve25519_dalek::backend::", "sha2::", "x25519_", "ge_")
LIST = pathlib.Path(__file__).with_name("places.txt")
_HASH = re.compile(r"::h[0-9a-f]{16}(\.llvm\.\d+)?$")
_CRATE = re.compile(r"\[[0-9a-f]{10,16}\]")
_CLONE = re.compile(r" \[clone [^\]]*\]|\.\d+$")


def _without_generics(path):
    """`a::B<C>::d` is `a::B::d`; of `<a::B<C> as D<E>>::f` only what is inside the outer brackets stays."""
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
    return "".join(kept)


def place(demangled):
    """The place of the function with this demangled name."""
    path = _without_generics(_CRATE.sub("", _CLONE.sub("", _HASH.sub("", demangled))))
    return re.sub(r"::[^:]*$", "", path)


def of_symbols(symbols):
    """The place of each of these mangled names, in their order."""
    if not symbols:
        return []
    demangled = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return [place(name) for name in demangled.stdout.splitlines()]


class Wanted:
    """The places in the list, and the families."""

    def __init__(self):
        lines = LIST.read_text().splitlines()
        self._listed = {line for line in lines if line and not line.startswith("#")}

    def __contains__(self, name):
        return name in self._listed or name.startswith(FAMILIES)
