"""How much memory `dispatcher send` takes for very many lines, and how fast it is.

Starts `dispatcher dev` and `dispatcher send` as processes of their own, sends `--lines` messages (with
`--pipe` through a pipe instead of a file), and watches the sender's resident memory together with the number
of receipts it has written. Prints both at line 100,000 and at the end. Exit 1 if a receipt is missing or out
of order, or if a bound does not hold: below 200 MB, and no more than 20 MB above what it was at line 100,000.

    python benchmarks/send_memory.py --lines 1000000
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

MEGABYTE: Final = 1_000_000
MARK_LINES: Final = 100_000
SAMPLE_SECONDS: Final = 0.05
START_SECONDS: Final = 20.0
TOKEN: Final = "benchmark"
DISPATCHER: Final = (sys.executable, "-m", "dispatcher")


class Sample(NamedTuple):
    """The sender at one instant."""

    lines: int
    """Receipts written."""
    rss_bytes: int


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--body-bytes", type=int, default=100, help="of each message (default: %(default)s)")
    parser.add_argument("--pipe", action="store_true", help="through a pipe instead of a file")
    parser.add_argument("--max-rss", type=float, default=200.0, help="MB (default: %(default)s)")
    parser.add_argument("--max-growth", type=float, default=20.0, help="MB (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        return measure(arguments, Path(directory))


def measure(arguments: argparse.Namespace, directory: Path) -> int:
    """One run in a directory of its own."""
    source, receipts = directory / "messages.ndjson", directory / "receipts.ndjson"
    write_messages(source, arguments.lines, arguments.body_bytes)
    with local_upstream(directory / "port") as url:
        began = time.monotonic()
        code, samples = watch_send(source, receipts, url, through_pipe=arguments.pipe)
        seconds = time.monotonic() - began
    wrong = first_wrong_receipt(receipts, arguments.lines)
    at_mark = next((one.rss_bytes for one in samples if one.lines >= MARK_LINES), 0)
    peak = max(one.rss_bytes for one in samples)
    growth = max((one.rss_bytes for one in samples if one.lines >= MARK_LINES), default=0) - at_mark
    print(
        f"{'pipe' if arguments.pipe else 'file'}: {arguments.lines:,} lines, {source.stat().st_size:,} bytes"
    )
    print(f"exit code {code}, receipts {'in order' if wrong is None else f'wrong from line {wrong:,}'}")
    print(f"{seconds:.1f} s, {arguments.lines / seconds:,.0f} msg/s with the start of the interpreter")
    print(f"resident at line {MARK_LINES:,}: {at_mark / MEGABYTE:.1f} MB")
    print(f"resident at the end: {samples[-1].rss_bytes / MEGABYTE:.1f} MB")
    print(f"highest: {peak / MEGABYTE:.1f} MB, growth after line {MARK_LINES:,}: {growth / MEGABYTE:.1f} MB")
    fits = peak < arguments.max_rss * MEGABYTE and growth <= arguments.max_growth * MEGABYTE
    return 0 if fits and code == 0 and wrong is None else 1


def write_messages(path: Path, lines: int, body_bytes: int) -> None:
    """Items for 50 destinations, each body another one."""
    filler = "x" * max(0, body_bytes - 10)
    with path.open("w", encoding="ascii") as file:
        for number in range(lines):
            target = f"https://example.com/hook/{number % 50}"
            file.write(f'{{"destination":"{target}","body":"{number:010d}{filler}"}}\n')


@contextmanager
def local_upstream(port_file: Path, *flags: str) -> Iterator[str]:
    """`dispatcher dev` on a free port, with more flags of its own; its URL."""
    command = (*DISPATCHER, "dev", "--port", "0", "--token", TOKEN, "--port-file", str(port_file), *flags)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        give_up_at = time.monotonic() + START_SECONDS
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError("the local upstream did not start")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}"
    finally:
        process.terminate()
        process.wait()


def watch_send(source: Path, receipts: Path, url: str, *, through_pipe: bool) -> tuple[int, list[Sample]]:
    """Run the sender to its end; its exit code, and what was seen of it."""
    command = (*DISPATCHER, "send", "-" if through_pipe else str(source), "--receipts", str(receipts))
    environment = {**os.environ, "QSTASH_TOKEN": TOKEN, "QSTASH_URL": url}
    stdin = subprocess.PIPE if through_pipe else subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, stdin=stdin)
    if through_pipe:
        threading.Thread(target=_feed, args=(process, source), daemon=True).start()
    samples: list[Sample] = []
    lines, offset = 0, 0
    while process.poll() is None:
        time.sleep(SAMPLE_SECONDS)
        more, offset = _lines_after(receipts, offset)
        lines += more
        with suppress(OSError, ValueError):
            if resident := resident_bytes(process.pid):  # none: it has just ended
                samples.append(Sample(lines, resident))
    return process.returncode, samples


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    statm = Path(f"/proc/{pid}/statm")
    if statm.parent.parent.joinpath("self").exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    answer = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return int(answer.stdout) * 1024


def first_wrong_receipt(receipts: Path, lines: int) -> int | None:
    """The first line whose receipt is missing, out of order or none."""
    number = 0
    with receipts.open("rb") as file:
        for number, line in enumerate(file, 1):
            receipt = orjson.loads(line)
            if receipt["line"] != number or not receipt.get("messageId"):
                return number
    return None if number == lines else number + 1


def _lines_after(path: Path, offset: int) -> tuple[int, int]:
    if not path.exists():
        return 0, offset
    with path.open("rb") as file:
        file.seek(offset)
        added = file.read()
    return added.count(b"\n"), offset + len(added)


def _feed(process: subprocess.Popen[bytes], source: Path) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), source.open("rb") as file, process.stdin as pipe:
        shutil.copyfileobj(file, pipe)


if __name__ == "__main__":
    raise SystemExit(main())
