"""Power loss: a file system that is shut down under the writer loses nothing that was acknowledged.

    python -m tests.outbox.powerloss --rounds 10

An ext4 in an image on a loop device; a program appends to a store there and prints what was acknowledged;
the file system is shut down without flushing its log (`EXT4_IOC_SHUTDOWN`), which leaves on the device what a
loss of power would; it is mounted again, its journal is replayed, and the store is opened. The control does
the same with `synchronous=off`, and has to find messages lost. Wants root and loop devices.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.imports import ROOT
from tests.outbox.sqlite_support import claim_all, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = struct.pack("I", 2)
IMAGE_BYTES = 256 << 20
TOOLS = ("mkfs.ext4", "mount", "umount", "losetup")


class Loss(NamedTuple):
    """One round."""

    acknowledged: int
    stored: int
    lost: int
    damaged: int


def missing() -> str:
    """What this machine lacks for it; empty: nothing."""
    if os.geteuid() != 0:
        return "root"
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return ", ".join(lacking)
    found = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    return "" if found.returncode == 0 else f"a loop device ({found.stderr.strip()})"


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[None]:
    """The image's file system; raises `CalledProcessError`."""
    run("mount", "-o", "loop", str(image), str(folder))
    try:
        yield
    finally:
        run("umount", str(folder))


def run(*words: str) -> None:
    """One tool."""
    subprocess.run(words, check=True, capture_output=True)


def lose_power(folder: Path) -> None:
    """From now on nothing reaches the device."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
    finally:
        os.close(fd)


def write_until_lost(folder: Path, synchronous: str, seconds: float) -> set[int]:
    """What a writer had acknowledged when the power was gone."""
    command = [sys.executable, "-m", "tests.outbox.sqlite_child", str(folder / "outbox.db"), "append", "0"]
    with subprocess.Popen(
        [*command, synchronous], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as child:  # what it says of the errors that follow is no news
        assert child.stdout is not None
        first = child.stdout.readline()
        assert first.startswith(b"open"), first
        output = b""
        try:
            with suppress(subprocess.TimeoutExpired):
                child.communicate(timeout=seconds)
            lose_power(folder)
        finally:
            child.kill()
            output = child.communicate()[0]
    lines = output.decode().splitlines(keepends=True)
    told = [line.split()[1:] for line in lines if line.startswith("kept") and line.endswith("\n")]
    return {int(number) for numbers in told for number in numbers}


async def stored(path: Path) -> tuple[set[int], int]:
    """What is in the file, and how many rows could not be read."""
    async with opened(path) as store:
        return set(await claim_all(store)), store.status().damaged


def one_round(place: Path, synchronous: str, seconds: float) -> Loss:
    """A new file system, a writer, no power, and a look."""
    image, folder = place / "image", place / "mounted"
    folder.mkdir(exist_ok=True)
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    run("mkfs.ext4", "-q", str(image))
    with mounted(image, folder):
        told = write_until_lost(folder, synchronous, seconds)
    with mounted(image, folder):
        there, damaged = asyncio.run(stored(folder / "outbox.db"))
    return Loss(len(told), len(there), len(told - there), damaged)


def losses(rounds: int, synchronous: str, seed: int) -> Iterator[Loss]:
    """One round after another."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        for _ in range(rounds):
            yield one_round(Path(place), synchronous, moments.uniform(0.2, 1.5))


def main() -> int:
    """Run it by its command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    asked = parser.parse_args()
    if lacking := missing():
        print(f"not done: it wants {lacking}")
        return 2
    print(f"--seed {asked.seed}")
    failed = False
    for synchronous in ("full", "off"):
        found = []
        for loss in losses(asked.rounds, synchronous, asked.seed):
            found.append(loss)
            print(f"synchronous={synchronous}: {loss}", flush=True)
        lost = sum(loss.lost for loss in found)
        failed |= bool(lost or sum(loss.damaged for loss in found)) if synchronous == "full" else not lost
    print("failed" if failed else "nothing acknowledged was lost; the control lost, as it must")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
