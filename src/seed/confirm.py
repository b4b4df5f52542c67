# Confirms the installation in place of a person: the medium's kernel line has no `autoinstall`.
# Runs detached from the early command that starts it, because the installer asks only later.
import http.client
import json
import os
import socket
import time

SOCKET = "/run/subiquity/socket"
BEFORE = ("STARTING_UP", "CLOUD_INIT_WAIT", "EARLY_COMMANDS", "WAITING")
PATIENCE = 2 * 60 * 60


class Installer(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def ask(method, path):
    connection = Installer("localhost", timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def state():
    return json.loads(ask("GET", "/meta/status")[1]).get("state")


def confirm():
    end = time.monotonic() + PATIENCE
    said = None
    while time.monotonic() < end:
        try:
            now = state()
            news = "the installer's state is " + str(now)
            if now == "NEEDS_CONFIRMATION":
                status = ask("POST", "/meta/confirm?tty=%22forge%22")[0]
                if status == 200:
                    return tell("the installer asked whether to go on, and was told to")
                news = "the installer asks whether to go on, and answers HTTP status " + str(status)
            elif now not in BEFORE:
                return tell(news)
        except (OSError, ValueError, http.client.HTTPException) as error:
            news = "the installer's socket does not answer: " + (str(error) or type(error).__name__)
        if news != said:
            tell(news)
            said = news
        time.sleep(1)
    tell("giving up: the installer has not asked whether to go on")


def detach():
    """Returns True in the detached process, False in the one the installer waits for."""
    if os.fork():
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    return True


if detach():
    try:
        confirm()
    finally:
        os._exit(0)
