"""A command as a user runs it, in a fresh home, and what strace saw of it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from workflows.engine.config import REPO

STRACE = shutil.which("strace")
PROBE = "8.8.8.8"
ADDRESS = re.compile(r'(?:inet_addr\(|AF_INET6, )"(?:::ffff:)?([^"]+)"|->\[?(?:::ffff:)?([0-9a-f.:]+?)\]?:\d+\]?>')
DOCUMENTED = (".cache/matplotlib/*",)  # below HOME, by docs/configuration.md
needs_strace = pytest.mark.skipif(STRACE is None, reason="strace is not installed (apt-get install strace)")


@dataclass(frozen=True)
class Seen:
    """What a process did: system calls that leave the machine, and paths that it left below its home and that no page
    names."""

    calls: list[str]
    written: list[str]


def watched(command: Sequence[str], trace: Path) -> list[str]:
    """The command under strace, which writes every attempt to reach somebody into `trace`."""
    watch = [str(STRACE), "-f", "--seccomp-bpf", "-yy", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    return [*watch, *command]


def bare(home: Path, **variables: str) -> dict[str, str]:
    """An environment of nothing but PATH, HOME and `variables`: nothing that looks like a CI or a test run."""
    home.mkdir(parents=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(REPO), **variables}


def read(home: Path, trace: Path) -> Seen:
    """What is to be seen after a watched command has ended."""
    files = sorted(str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir())
    unsaid = [path for path in files if not any(fnmatch(path, pattern) for pattern in DOCUMENTED)]
    return Seen(leaving(trace.read_text(errors="replace")), unsaid)


def seen(folder: Path, code: str, *words: str, **variables: str) -> Seen:
    """Run Python code as a user would."""
    home, trace = folder / "home", folder / "trace.txt"
    env = bare(home, **variables)
    script = folder / "script.py"
    script.write_text(code)
    command = watched([sys.executable, str(script), *words], trace)
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return read(home, trace)


def leaving(trace: str) -> list[str]:
    """Lines of strace's that name a stranger's address or a resolver."""
    own = {one.address.partition("%")[0] for cards in psutil.net_if_addrs().values() for one in cards}
    found = []
    for line in trace.splitlines():
        connects = " connect(" in line
        named = ADDRESS.findall(line.partition(", ")[2] if connects else line)  # before it is what the socket was
        strangers = {one for pair in named for one in pair if one} - own
        strangers = {one for one in strangers if not (ip_address(one).is_loopback or ip_address(one).is_unspecified)}
        probes = strangers == {PROBE} and connects and "<TCP" not in line
        if not probes and (strangers or "htons(53)" in line or "/resolve/" in line):
            found.append(line)
    return found
