#!/usr/bin/env python3
"""Ask the agent on this device about every image that is put into a folder.

    watch.py [--socket PATH] [--model digits] [--input image] [--width 8] [--height 8] [--brightest 16] [--output FOLDER] FOLDER

Needs Debian's python3-watchdog and python3-pil. An image is taken when whoever writes it has closed it, or has moved it into the folder,
and when it lay there at the start. It is made gray and brought to the model's shape; the answer goes to done/NAME.json, or to --output, and the image
to done/. One that cannot be read (nor may be) or is refused goes to failed/, with the reason in failed/NAME.json. Hidden files and files
with other endings than those of images are left alone. An image that is replaced by another of its name before it has an answer has none; the other has.

While the agent does not answer (no agent yet, no model yet, too many requests) images stay where they are: the folder is the queue. In memory
are at most --queue names; what does not fit is found again by looking through the folder. SIGTERM or SIGINT ends it with 0.
"""

import argparse
import contextlib
import errno
import fcntl
import http.client
import json
import os
import queue
import random
import signal
import socket
import stat
import sys
import time
import warnings
from pathlib import Path

from PIL import Image
from watchdog.events import FileSystemEventHandler
from watchdog.observers.inotify import InotifyObserver

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# A request takes milliseconds; this bounds one to an agent that is stuck, in seconds.
TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
MAX_ANSWER_BYTES = 1 << 20
MAX_IMAGE_BYTES = 64 << 20
# More, and an image is refused before it is unpacked.
Image.MAX_IMAGE_PIXELS = 50_000_000
# How long an image found by looking must have been left alone, in seconds, where the system does not say who writes it.
SETTLED_S = 2.0
# 503: no model yet, or more requests than may wait.
MAY_PASS = {408, 429, 503}
# Blocked, and looked for where it is safe to stop: nothing is broken off in the middle.
STOP = {signal.SIGTERM, signal.SIGINT}
# By which the thread that hears of files wakes the one that works.
WAKE = signal.SIGUSR1


class Stopped(Exception):
    """Somebody wants this program to end."""


class Faulty(Exception):
    """This image will not be answered."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def pause(seconds, wake=()):
    """Sleeps, unless a signal comes."""
    came = signal.sigtimedwait(STOP | set(wake), seconds)
    if came is not None and came.si_signo in STOP:
        raise Stopped


def pause_s(attempt):
    """Between half and all of the pause for this attempt, so that many programs do not come back together."""
    longest = min(FIRST_PAUSE_S * 2 ** min(attempt - 1, 16), LONGEST_PAUSE_S)
    return random.uniform(longest / 2, longest)


def is_image(name):
    return not name.startswith(".") and Path(name).suffix.lower() in ENDINGS


class Inbox(FileSystemEventHandler):
    """The names of images that are complete: bounded, each once. Runs on watchdog's thread."""

    def __init__(self, folder, length):
        super().__init__()
        self.folder = folder
        self.names = queue.Queue(length)
        # Something did not fit, or was not complete: the folder has to be looked through.
        self.look_again = True

    def put(self, name):
        if not is_image(name):
            return
        try:
            self.names.put_nowait(name)
        except queue.Full:
            self.look_again = True

    def heard(self, path):
        path = Path(os.fsdecode(path))
        if path.parent == self.folder:
            self.put(path.name)
            os.kill(os.getpid(), WAKE)

    def on_closed(self, event):
        self.heard(event.src_path)

    def on_moved(self, event):
        # Empty for a file that was moved away.
        self.heard(event.dest_path or "")


def is_being_written(path):
    """Whether somebody has the file open for writing; None where the system does not tell, as for a file of another user."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError:
        # It may not be read: said when its turn comes.
        return None
    try:
        # A lease for reading is given only where nobody writes.
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    finally:
        os.close(descriptor)
    return False


def look_through(inbox):
    """Finds complete images in the folder, oldest first."""
    inbox.look_again = False
    found = []
    with os.scandir(inbox.folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if is_image(entry.name) and entry.is_file(follow_symlinks=False):
                    found.append((entry.stat(follow_symlinks=False).st_mtime, entry.name))
                    # As many as could be put, so that a folder with a million images needs no memory.
                    if len(found) > 4 * inbox.names.maxsize:
                        found = sorted(found)[: inbox.names.maxsize]
                        inbox.look_again = True
    for changed, name in sorted(found):
        with contextlib.suppress(FileNotFoundError):
            writing = is_being_written(inbox.folder / name)
            if writing is False or (writing is None and time.time() - changed >= SETTLED_S):
                inbox.put(name)


def pixels(path, arguments):
    """The image as the model takes it: gray, of its size, from 0 to its brightest."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            gray = image.convert("L").resize((arguments.width, arguments.height), Image.Resampling.BOX)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Faulty(f"the image cannot be read: {error}") from error
    return [value * arguments.brightest / 255 for value in gray.tobytes()]


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=TIMEOUT_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask_once(arguments, body):
    """Status and JSON of one request."""
    connection = Connection(arguments.socket)
    try:
        connection.request("POST", f"/v2/models/{arguments.model}/infer", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read(MAX_ANSWER_BYTES + 1)
    finally:
        connection.close()
    try:
        return response.status, json.loads(answer)
    except ValueError as error:
        raise OSError(f"the answer is no JSON: {error}") from error


def ask(arguments, values):
    """The agent's answer, however long it takes to get one."""
    tensor = {"name": arguments.input, "datatype": "FP32", "shape": [1, len(values)], "data": values}
    body = json.dumps({"inputs": [tensor]})
    attempt = 0
    while True:
        try:
            status, answer = ask_once(arguments, body)
            if status == 200:
                if attempt:
                    say("goes on")
                return answer
            why = answer.get("error", "no reason given")
            if status not in MAY_PASS:
                raise Faulty(f"refused with {status}: {why}")
        except (OSError, http.client.HTTPException) as error:
            why = f"no answer from {arguments.socket}: {error or type(error).__name__}"
        attempt += 1
        if attempt == 1:
            say(f"held up, images stay in the folder: {why}")
        pause(pause_s(attempt))


def write(path, content):
    """Writes JSON so that nobody ever sees half of it."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def free_name(folder, name):
    """`name`, or one like it that is not in the folder yet."""
    stem, ending = os.path.splitext(name)
    count = 0
    while (folder / name).exists() or (folder / f"{name}.json").exists():
        count += 1
        name = f"{stem}-{count}{ending}"
    return name


def version(found):
    """What tells a file from another that has come into its place, or from itself before somebody wrote to it."""
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def lay_aside(inbox, path, found, folder, said, output=None):
    """Writes what is said of an image, then moves the image to `folder`; neither where it is not the file any more that was `found`."""
    with contextlib.suppress(FileNotFoundError):
        if version(path.lstat()) == version(found):
            kept = free_name(folder, path.name)
            write((output or folder) / f"{kept}.json", said)
            os.replace(path, folder / kept)
            return True
    say(f"{path.name} is not there any more, or is another by now")
    inbox.put(path.name)
    return False


def work(arguments, inbox, name):
    """From the image to its answer. The image moves last: whatever breaks in between, it is there and is done again."""
    path = arguments.folder / name
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or is_being_written(path):
            return
    except FileNotFoundError:
        return
    try:
        if found.st_size > MAX_IMAGE_BYTES:
            raise Faulty(f"{found.st_size} bytes are too many")
        # Days can pass until there is an agent that answers.
        answer = ask(arguments, pixels(path, arguments))
        scores = answer["outputs"][0]["data"]
        best = max(range(len(scores)), key=scores.__getitem__)
        said = {"image": name, "model": answer["model_name"], "version": answer["model_version"], "best": best, "outputs": answer["outputs"]}
    except Faulty as fault:
        say(f"{name}: {fault}")
        lay_aside(inbox, path, found, arguments.folder / "failed", {"image": name, "error": str(fault)})
        return
    if lay_aside(inbox, path, found, arguments.folder / "done", said, arguments.output):
        print(name, best, f"{scores[best]:.9g}", f"{said['model']}@{said['version']}", flush=True)


def run(arguments):
    for folder in (arguments.folder / "done", arguments.folder / "failed", arguments.output):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    inbox = Inbox(arguments.folder, arguments.queue)
    # It tells a file that was moved here, which is complete, from one that was made here, which is not yet.
    observer = InotifyObserver(generate_full_events=True)
    observer.schedule(inbox, str(arguments.folder))
    observer.start()
    say(f"watches {arguments.folder}")
    while True:
        pause(0)
        try:
            work(arguments, inbox, inbox.names.get_nowait())
        except queue.Empty:
            if inbox.look_again:
                look_through(inbox)
            if inbox.names.empty():
                pause(arguments.rescan_s, {WAKE})
                # What an event was lost for, or was still being written the last time.
                inbox.look_again = True


def main():
    parser = argparse.ArgumentParser(description="Ask the agent on this device about every image that is put into a folder.")
    parser.add_argument("--socket", default="/run/muster-agent/inference.sock", help="the agent's [serve] unix-socket")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--input", default="image", help="the name of the model's input")
    parser.add_argument("--width", type=int, default=8, help="of the model's images")
    parser.add_argument("--height", type=int, default=8)
    parser.add_argument("--brightest", type=float, default=16, help="what white is for the model")
    parser.add_argument("--queue", type=int, default=64, help="names held in memory")
    parser.add_argument("--rescan-s", type=float, default=30, help="how often to look through the folder in any case, in seconds")
    parser.add_argument("--output", type=Path, help="where answers go, if not beside the images in done/")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP | {WAKE})
    # Sent to the holder of a lease when somebody wants to write; ours is given back at once anyway.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        run(arguments)
    except Stopped:
        return
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
