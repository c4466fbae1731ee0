"""`BlockingDispatcher` and processes: forks, exits, an upstream that is not there, gunicorn."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.blocking_support import (
    PATIENCE,
    WARNINGS,
    accepted,
    program_environment,
    run_program,
    wait_until,
)
from tests.devserver.support import dev_process
from tests.imports import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

BEGIN = """
import logging, os, signal, sys, threading, time
from dispatcher import *
URL = "https://example.com/hook"
dispatcher = BlockingDispatcher()
"""


@pytest.fixture(scope="module")
def upstream_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One local upstream in a process of its own, for all tests here."""
    with dev_process(tmp_path_factory.mktemp("upstream"), "--keep-bodies") as upstream:
        yield upstream.url


@pytest.fixture
def url(upstream_url: str) -> str:
    """The same, with nothing in it."""
    request = urllib.request.Request(f"{upstream_url}/dispatcher-dev/reset", method="POST")
    with urllib.request.urlopen(request, timeout=PATIENCE):
        return upstream_url


def bodies(url: str) -> list[str]:
    """What was accepted, sorted."""
    return sorted(row["body"] for row in accepted(url))


# ------------------------------------------------------------------------------------------------- exit

ENDINGS = {
    "the end of the script": "",
    "sys.exit": "sys.exit(0)",
    "an error": "raise LookupError('on purpose')",
    "sys.exit in a signal handler": """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(10)
""",
    "a dropped dispatcher": "del dispatcher",
    "threads that go on": """
def work():
    main = threading.main_thread()
    main.join()
    dispatcher.put(Message(URL, "2"))
threading.Thread(target=work).start()
""",
    "an executor that goes on": """
from concurrent.futures import ThreadPoolExecutor
def work():
    while threading._SHUTTING_DOWN is False:
        time.sleep(0.001)
    dispatcher.put(Message(URL, "2"))
ThreadPoolExecutor().submit(work)
""",
    "an exit function registered before": "",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_script_that_just_ends_delivers(url: str, ending: str) -> None:
    """Whatever ends it, what was put is delivered, also what its other threads put after its last line."""
    first = "" if "registered" not in ending else "import atexit; atexit.register(lambda: print('late'))"
    program = f"{first}\n{BEGIN}\nfor n in range(2): dispatcher.put(Message(URL, str(n)))\n{ENDINGS[ending]}"
    code, output, errors = run_program(program, url)
    expected = ["0", "1", "2"] if "goes on" in ending or "go on" in ending else ["0", "1"]
    assert bodies(url) == expected, errors
    if ending == "an error":
        assert (code, "LookupError: on purpose" in errors) == (1, True)
    else:
        assert (code, errors) == (0, "")
    assert output == ("late\n" if "registered" in ending else "")


def test_names_are_looked_up_during_the_exit(url: str) -> None:
    """The first connection is made when the interpreter exits already: by name, in no executor of its own."""
    named = url.replace("127.0.0.1", "localhost")
    program = BEGIN + "dispatcher.start()\nimport atexit\n" + 'dispatcher.put_nowait(Message(URL, "0"))\n'
    late = """
config = Config.load(batch={"linger": 60, "soft_slots": 0})
lingering = BlockingDispatcher(config, name="lingering")
lingering.put(Message(URL, "1"))
"""
    code, _, errors = run_program(program + late, named)
    assert (code, errors, bodies(url)) == (0, "", ["0", "1"])


def test_a_message_after_the_exit_drain_is_refused(url: str) -> None:
    """An exit function that runs after the drain is told so, also for a dispatcher that never began."""
    program = f"""
import atexit
def late():
    for one in (dispatcher, never):
        try:
            one.put(Message(URL, "late"))
        except DispatcherClosed as error:
            print(error)
atexit.register(late)
{BEGIN}
never = BlockingDispatcher(name="never")
dispatcher.put(Message(URL, "0"))
"""
    code, output, errors = run_program(program, url)
    assert (code, output, errors) == (0, "the dispatcher is closed\nthe interpreter is exiting\n", "")
    assert bodies(url) == ["0"]


def test_an_exit_without_an_upstream_ends_in_time() -> None:
    """After `drain_within`, and the log says how many messages are lost, and why."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and never listens
        began = time.monotonic()
        code, _, errors = run_program(
            BEGIN + 'logging.basicConfig()\nfor n in range(3): dispatcher.put(Message(URL, "x"))',
            f"http://127.0.0.1:{unused.getsockname()[1]}",
            DISPATCHER_DRAIN_WITHIN="0.5",
        )
    assert code == 0
    assert time.monotonic() - began < 10
    assert "3 messages failed and nobody awaited them" in errors
    assert "closed with undelivered messages" in errors
    assert "not_sent=3" in errors
    assert "Traceback" not in errors


def test_the_loop_is_the_policys(url: str) -> None:
    """With uvloop installed the dispatcher's thread runs uvloop, through a fork and an exit too."""
    pytest.importorskip("uvloop")
    program = f"""
import asyncio, uvloop
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
{BEGIN}
dispatcher.send(Message(URL, "0"))
dispatcher._worker.call(lambda: print(type(asyncio.get_running_loop()).__module__, flush=True))
child = os.fork()
dispatcher.put(Message(URL, "2" if child else "1"))
if child:
    assert os.wait()[1] == 0
"""
    code, output, errors = run_program(program, url)
    assert (code, output, errors) == (0, "uvloop\n", "")
    assert bodies(url) == ["0", "1", "2"]


# ------------------------------------------------------------------------------------------------- forks


def test_a_forked_child_begins_anew(url: str) -> None:
    """Two generations, each used before and after its fork: own ids, own counts, exits that drain.

    What a parent has in hand is refused to its child; the parent's connections go on to work.
    """
    program = f"""{BEGIN}
def generation(number):
    receipt = dispatcher.send(Message(URL, f"{{number}} before"))
    assert receipt.attempts == 1
    lingering.put(Message(URL, f"{{number}} lingers"))
    held = lingering.put_nowait(Message(URL, f"{{number}} lingers too"))
    if number < 2 and os.fork() == 0:
        assert dispatcher.statistics().admitted == 0
        assert "new" in repr(dispatcher)
        for wait in (held.result, held.exception, held.withdraw):
            try:
                wait()
            except DispatcherClosed as error:
                assert "forked" in str(error)
            else:
                raise AssertionError("it knows more than it can")
        return generation(number + 1)
    if number < 2:
        _, status = os.wait()
        assert status == 0, status
    again = dispatcher.send(Message(URL, f"{{number}} after"))
    assert (again.attempts, dispatcher.statistics().admitted) == (1, 2)
    assert again.deduplication_id.split("-")[0] == receipt.deduplication_id.split("-")[0]

lingering = BlockingDispatcher(Config.load(batch={{"linger": 60, "soft_slots": 0}}), name="lingering")
generation(0)
"""
    code, _, errors = run_program(program, url)
    assert (code, errors) == (0, "")
    words = ("before", "after", "lingers", "lingers too")
    assert bodies(url) == sorted(f"{number} {word}" for number in range(3) for word in words)
    openings = {row["deduplicationId"].partition("-")[0] for row in accepted(url)}
    assert len(openings) == 6


def test_locks_that_other_threads_hold_are_not_inherited(url: str) -> None:
    """Forked while one is held, and while threads submit as fast as they can: no child ever hangs."""
    program = f"""{BEGIN}
dispatcher.start()
dispatcher._lock.acquire()  # as a thread that opens or closes it would
if os.fork() == 0:
    dispatcher.send(Message(URL, "child"))
    sys.exit()
assert os.wait()[1] == 0
dispatcher._lock.release()
stop = False
def submit():
    while not stop:
        dispatcher.put(Message(URL, "parent"))
threads = [threading.Thread(target=submit) for _ in range(3)]
for each in threads: each.start()
for n in range(20):
    if os.fork() == 0:
        dispatcher.send(Message(URL, f"child {{n}}"))
        dispatcher.close()
        os._exit(0)
    assert os.wait()[1] == 0
stop = True
for each in threads: each.join()
print(dispatcher.close().is_clean, dispatcher.statistics().admitted)
"""
    code, output, errors = run_program(program, url, DISPATCHER_QUEUE_MAX_MESSAGES="200")
    assert (code, errors) == (0, "")
    is_clean, admitted = output.split()
    got = bodies(url)
    assert is_clean == "True"
    assert got.count("parent") == int(admitted)
    assert [one for one in got if one != "parent"] == sorted(["child", *(f"child {n}" for n in range(20))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_drain(url: str, method: str, tmp_path: Path) -> None:
    """They end by `os._exit`, without exit functions: what they put is delivered all the same."""
    program = f"""{BEGIN}
import multiprocessing

def work(n):
    dispatcher.put(Message(URL, f"child {{n}}"))

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    children = [context.Process(target=work, args=(n,)) for n in range(3)]
    for each in children: each.start()
    for each in children: each.join()
    print([each.exitcode for each in children])
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, *WARNINGS, str(path)],
        env=program_environment(url),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 0, 0]\n", "")
    assert bodies(url) == ["child 0", "child 1", "child 2"]


# ---------------------------------------------------------------------------------------------- gunicorn

APPLICATION = """
import os
from flask import Flask, request
from dispatcher import BlockingDispatcher, Message

URL = "https://example.com/hook"
dispatcher = BlockingDispatcher()
app = Flask(__name__)
if "USED_BEFORE" in os.environ:
    dispatcher.send(Message(URL, "from the master"))

@app.post("/put")
def put():
    dispatcher.put(Message(URL, request.get_data(as_text=True)))
    return str(os.getpid()), 202

@app.post("/send")
def send():
    dispatcher.send(Message(URL, request.get_data(as_text=True)))
    return str(os.getpid()), 201
"""


@contextmanager
def gunicorn(directory: Path, url: str, *words: str, **environment: str) -> Iterator[str]:
    """The application above under gunicorn with two forked workers, until it is ended as SIGTERM ends it."""
    (directory / "application.py").write_text(APPLICATION)
    log = directory / "log"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", *words]
        command += ["--bind", f"fd://{listener.fileno()}", "--chdir", str(directory)]
        command += ["--log-file", str(log), "application:app"]
        process = subprocess.Popen(
            command,
            env=program_environment(url, HOME=str(directory), **environment),
            pass_fds=(listener.fileno(),),
            cwd=ROOT,
        )
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            process.terminate()
            assert process.wait(PATIENCE) == 0, log.read_text()
            assert "Traceback" not in log.read_text(), log.read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def post(url: str, body: str) -> str:
    """What the application answers to a POST."""
    request = urllib.request.Request(url, data=body.encode(), headers={"Content-Type": "text/plain"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        assert reply.status in (201, 202)
        return str(reply.read(), "ascii")


@pytest.mark.parametrize(
    ("words", "used_before"),
    [(("--worker-class", "sync"), False), (("--worker-class", "gthread", "--threads", "4"), True)],
    ids=["sync", "gthread, used before"],
)
def test_gunicorn_workers(url: str, tmp_path: Path, words: tuple[str, ...], used_before: bool) -> None:
    """A preloaded module's dispatcher works in each worker, and what they answered for is there, once.

    They are ended while what was put last still lingers; also if the master itself had used it.
    """
    texts = [f"{n}" for n in range(60)]
    environment = {"DISPATCHER_BATCH_LINGER": "0.5", "DISPATCHER_BATCH_SOFT_SLOTS": "0"}
    if used_before:
        environment["USED_BEFORE"] = "1"
    workers: set[str] = set()

    def ask(text: str) -> int:
        way = "send" if text.endswith("7") else "put"
        workers.add(post(f"{server}/{way}", text))
        return len(workers)

    with gunicorn(tmp_path, url, *words, **environment) as server, ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, texts))
        wait_until(lambda: ask("more") == 2)  # both have had some
    got = bodies(url)
    assert [one for one in got if one != "more"] == sorted([*texts, *["from the master"] * used_before])
