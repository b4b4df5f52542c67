"""Runs other programs: output into the log, an error that says what failed."""

import os
import subprocess
from contextlib import contextmanager

TARGET = "/target"
CURTIN_LOG = "/var/log/installer/curtin-install.log"


class Failed(Exception):
    """A program ended with an error."""

    def __init__(self, argv, code, output=""):
        last = [line for line in output.strip().splitlines() if line.strip()][-3:]
        super().__init__(f"{' '.join(argv)} exited with {code}" + (": " + " | ".join(last) if last else ""))
        self.code = code
        self.output = output


def run(*argv, env=None, input=None):
    """Runs a program, keeps its output in the log, returns it; raises Failed."""
    done = subprocess.run(
        argv,
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        check=False,
    )
    with open(os.open(CURTIN_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as log:
        log.write(f"Running command {list(argv)} gave {done.returncode}\n{done.stdout}")
    if done.returncode != 0:
        raise Failed(argv, done.returncode, done.stdout)
    return done.stdout


def in_target(*argv, env=None):
    """Runs a program inside the target, with the file systems and no services started."""
    return run("curtin", "in-target", "--", *argv, env=env)


@contextmanager
def chroot_mounts():
    """Keeps the kernel's file systems mounted in the target over several commands."""
    run("curtin", "mounts", "up")
    try:
        yield
    finally:
        run("curtin", "mounts", "down")


def write(path, text, mode=0o644):
    """Writes a whole file with exactly this mode."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
