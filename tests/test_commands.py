"""Every command answers --help at once, and a typo with one sentence."""

import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from workflows.engine.config import EXIT_BAD_INPUT, REPO, guarded
from workflows.full_pipeline import main

COMMANDS = sorted(p.stem for p in (REPO / "workflows").glob("*.py") if '__name__ == "__main__"' in p.read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_heavy_import(command):
    """Seconds are not asserted (machines differ); what costs them is: torch, Ray and MLflow are not imported."""
    code = (
        f"import sys, runpy; sys.argv = ['{command}.py', '--help']\n"
        "try:\n    runpy.run_path(r'workflows/" + command + ".py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'timm', 'matplotlib'} & set(sys.modules)\nassert not heavy, heavy"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    usage, said, example = done.stdout.split("\n\n")[:3]
    assert usage.startswith("usage: ") and said.endswith("."), "a sentence says what the command does"
    assert example.startswith(f"    python workflows/{command}.py"), "examples come next"
    assert done.stdout.splitlines()[-1].startswith("exit codes: 0 "), "exit codes come last"
    assert "--json" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plna"], "did you mean 'plan'"),
        (["student.optim.lrr=3"], "did you mean 'lr'"),
        (["-c", "conf/nothing.yaml"], "no configuration file"),
        (["plan", "data.datasets.heads.reader=biwii"], "allowed:"),
        (["--jsno"], "did you mean '--json'"),
        (["techers"], "did you mean 'teachers'"),
        (["--store", "runs"], "a key is written store=VALUE"),
    ],
)
def test_a_typo_ends_with_one_sentence_and_code_2(words, said, capsys):
    assert guarded(lambda: main(words)) == EXIT_BAD_INPUT == 2
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1 and told.out == ""


def test_the_script_ends_as_its_main_does():
    command = [sys.executable, "workflows/full_pipeline.py", "plna"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 2 and "did you mean 'plan'" in done.stderr and "Traceback" not in done.stderr


# A dataset of Ray that is half built when the signal comes raises as it is freed, after the last sentence.
HALF = """
class Freed:
    def __init__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        self.whole = True
    def __del__(self):
        assert self.whole
"""
# What is raised while an object is freed goes no further, a stop included.
LOST = """
class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
"""


@pytest.mark.parametrize("freed", [HALF, LOST], ids=["half built", "in a finalizer"])
def test_a_signal_stops_a_run_whatever_is_freed_by_it(freed):
    imports = "import os, signal, time\nfrom workflows.engine.config import guarded\n"
    main = "def main():\n    Freed()\n    time.sleep(20)\n    return 7\nraise SystemExit(guarded(main))"
    done = subprocess.run([sys.executable, "-c", imports + freed + main], capture_output=True, text=True, cwd=REPO)
    assert (done.returncode, done.stderr) == (130, "stopped; the same command continues from here\n")


STOPPED = """
import os, signal, time
from workflows.engine import config
def main():
    try:
        os.kill(os.getpid(), signal.{first})
        time.sleep(0.05)
        return 7
    finally:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        print("closed", flush=True)
        config.CLOSING_S = {closing}
        os.kill(os.getpid(), signal.SIGTERM)
        print("hangs")
raise SystemExit(config.guarded(main))
"""


@pytest.mark.parametrize(
    ("first", "ignored", "closing", "code", "out"),
    [
        ("SIGINT", False, 20, 130, "closed\nhangs\n"),
        ("SIGTERM", False, 20, 130, "closed\nhangs\n"),
        ("SIGINT", False, 0, 130, "closed\n"),
        ("SIGTERM", True, 20, 130, "closed\nhangs\n"),
    ],
)
def test_a_run_that_is_being_closed_is_not_stopped_again_unless_it_hangs(first, ignored, closing, code, out):
    done = stopped(STOPPED.format(first=first, closing=closing), ignored=ignored)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    said = "stopped; the same command continues from here\n" if closing else ""
    assert done.stderr == said


def test_what_a_script_puts_into_the_background_hears_no_ctrl_c():
    code = (
        "import os, signal\nfrom workflows.engine.config import guarded\n"
        "raise SystemExit(guarded(lambda: os.kill(os.getpid(), signal.SIGINT) or 7))"
    )
    assert stopped(code, ignored=True).returncode == 7 and stopped(code, ignored=False).returncode == 130


def stopped(code: str, *, ignored: bool) -> "subprocess.CompletedProcess[str]":
    """A process of its own, in which SIGINT is ignored from the start or not."""
    script = shlex.join([sys.executable, "-c", code])
    shell = ["bash", "-c", f"trap '' INT; exec {script}"] if ignored else [sys.executable, "-c", code]
    return subprocess.run(shell, capture_output=True, text=True, cwd=REPO, preexec_fn=hears_ctrl_c)


def hears_ctrl_c() -> None:
    """However the tests themselves were started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_files_that_pages_and_docstrings_name_are_there():
    """Walls move, and sentences about them stay behind."""
    texts = [*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), REPO / "tests/README.md"]
    texts += [path for room in ("hpe_core", "workflows", "conf", "infra") for path in (REPO / room).rglob("*.[py]*")]
    named = r"(?:hpe_core|workflows|tests|conf|docs|infra)/[\w./-]+\.(?:py|yaml|md|png|jpg)\b"
    missing = {
        f"{path.relative_to(REPO)}: {name}"
        for path in texts
        if path.suffix in (".py", ".md", ".yaml")
        for name in re.findall(named, path.read_text())
        if not (REPO / name).exists()
    }
    assert not missing
