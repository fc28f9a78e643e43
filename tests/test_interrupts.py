"""Ctrl-C, a real SIGINT, ends a command with one line and status 130, at any time; SIGTERM with 143."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
AT_ONCE = "error: interrupted\n"
KEPT = "error: interrupted; what is complete is kept, so run the same command again to continue\n"


def start(*command: str) -> subprocess.Popen:
    """A Python process that SIGINT reaches, also where the tests themselves run in the background."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_ADDRESS": "local"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - takes no lock
    )


def interrupt_at_import(module: str, *command: str, number: int = signal.SIGINT) -> tuple[int, str]:
    """Interrupt a command once it has imported a module: its exit status and what it printed as errors."""
    process = start("-X", "importtime", *command)
    printed = []
    for line in process.stderr:
        if not line.startswith("import time:"):
            printed.append(line)
        elif line.rpartition("|")[2].strip() == module:
            process.send_signal(number)
            break
    printed += [line for line in process.stderr if not line.startswith("import time:")]
    return process.wait(timeout=60), "".join(printed)


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("pydantic", ["experiments/train.py", "--help"]),
        ("numpy", ["experiments/ablate.py", "--help"]),
        ("experiments.run.preflight", ["experiments/sweep_sfm.py"]),
        ("pydantic", ["cluster/local.py", "status"]),
        ("data_catalog.errors", ["-m", "data_catalog", "--help"]),
        ("pyarrow.lib", ["-m", "data_catalog", "--help"]),
    ],
)
def test_interrupt_while_a_script_imports_is_one_line(module, command):
    assert interrupt_at_import(module, *command) == (130, AT_ONCE)


def test_sigterm_while_a_script_imports_is_one_line():
    ended = interrupt_at_import("pydantic", "experiments/train.py", "--help", number=signal.SIGTERM)
    assert ended == (143, "error: ended by SIGTERM\n")


@pytest.mark.parametrize("module", ["torch.nn", "open_clip", "stmi.model"])
def test_interrupt_in_preflight_is_one_line_that_says_how_to_continue(module, tmp_path):
    command = ["experiments/train.py", "--recipe", "demo", "--workspace", str(tmp_path)]
    assert interrupt_at_import(module, *command) == (130, KEPT)


ENDING = """
import atexit, time
from data_catalog.interrupts import end_on_interrupt, interruptible

def nap():
    for _ in range(600):  # in pieces: a signal just before a sleep begins is handled when the sleep is over
        time.sleep(0.1)

end_on_interrupt()
with interruptible("error: kept"):
    print("working", flush=True)
    {work}
print("result", flush=True)
atexit.register(nap)
"""


@pytest.mark.parametrize(
    ("work", "moment", "message"),
    [("nap()", "working\n", "error: kept\n"), ("pass", "result\n", AT_ONCE)],
)
def test_interrupt_after_the_result_does_not_wait_for_the_end(work, moment, message):
    process = start("-c", ENDING.format(work=work))
    while process.stdout.readline() != moment:
        pass
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == message
    assert process.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_opened_is_closed_and_the_interpreter_does_not_end(number):
    """Threads of libraries crash in the end of the interpreter; what is registered for it comes before."""
    work = """
    class Kept:
        def __del__(self):
            print("end of the interpreter", flush=True)

    kept = sys.kept = Kept()
    atexit.register(print, "closed", flush=True)
    try:
        print("inside", flush=True)
        nap()
    except KeyboardInterrupt:
        raise KeyboardInterrupt  # as Ray does in place of the one that it got"""
    process = start("-c", "import sys" + ENDING.format(work=work))
    assert process.stdout.readline() == "working\n"
    assert process.stdout.readline() == "inside\n"
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("closed\n", "error: kept\n")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("times", [1, 2])
def test_processes_of_ray_end_with_the_command(times):
    """Its agents would go on for a minute, whether the command was ended in good order or at once."""
    work = """
    import subprocess, sys
    sys.modules["ray"] = sys
    try:
        print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
        nap()
    except KeyboardInterrupt:
        if {times} == 1:
            raise
        print("swallowed", flush=True)
        nap()"""
    process = start("-c", ENDING.format(work=work.replace("{times}", str(times))))
    assert process.stdout.readline() == "working\n"
    agent = psutil.Process(int(process.stdout.readline()))
    process.send_signal(signal.SIGINT)
    if times == 2:
        assert process.stdout.readline() == "swallowed\n"
        process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == ("error: kept\n" if times == 1 else AT_ONCE)
    deadline = time.monotonic() + 10
    while agent.is_running() and agent.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_interrupt_ends_what_swallowed_the_first_one():
    work = """try:
        print("inside", flush=True)
        nap()
    except KeyboardInterrupt:
        print("swallowed", flush=True)
        nap()"""
    process = start("-c", ENDING.format(work=work))
    assert process.stdout.readline() == "working\n"
    for moment in ("inside\n", "swallowed\n"):
        assert process.stdout.readline() == moment
        process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == AT_ONCE
    assert process.returncode == 130


@pytest.mark.parametrize("swallows", [False, True])
def test_thread_that_finds_that_nothing_goes_on_ends_the_command_in_good_order_or_at_once(swallows):
    work = f"""
    import threading
    from data_catalog import interrupts
    interrupts.CLOSING_SECONDS = 1.0
    timer = threading.Timer(1.0, interrupts.fail, ["the server has gone"])
    timer.daemon = True
    timer.start()
    try:
        nap()
    except KeyboardInterrupt:
        print("closed", interrupts.has_failed(), flush=True)
        if not {swallows}:
            raise
        nap()"""
    process = start("-c", ENDING.format(work=work))
    assert process.communicate(timeout=30) == ("working\nclosed True\n", "error: the server has gone\n")
    assert process.returncode == 1


def test_interrupts_that_the_caller_ignores_stay_ignored():
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from data_catalog.interrupts import end_on_interrupt, interruptible\n"
        "end_on_interrupt()\n"
        "with interruptible('error: kept'):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    process = start("-c", code)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


def test_reader_that_closes_the_pipe_early_gets_no_traceback():
    # More than a pipe holds.
    process = start("-u", "experiments/train.py", "--list-settings", "--json")
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=60)) == ("", 0)


def test_nothing_follows_a_printed_result_on_standard_output():
    code = (
        "import atexit\n"
        "from data_catalog.interrupts import printing\n"
        "atexit.register(print, 'a library says at the end what it held back')\n"
        "with printing():\n"
        "    print('{}')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "{}\n"
    assert ended.stderr == "a library says at the end what it held back\n"
