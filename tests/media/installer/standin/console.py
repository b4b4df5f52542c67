"""What a person in front of the machine sees: tty1, the serial port, the journal."""

import os
import threading
import time


def serial_port():
    """Returns /dev/ttyS0 if a port is really behind it, for the node is always there."""
    try:
        with open("/proc/tty/driver/serial", encoding="ascii") as file:
            for line in file:
                if line.startswith("0:") and "uart:unknown" not in line:
                    return "/dev/ttyS0"
    except OSError:
        pass
    return None


class Console:
    """Writes each line to all places; never fails because of one of them."""

    def __init__(self, log_file="/var/log/installer/subiquity-server-debug.log"):
        self.begin = time.monotonic()
        self.lock = threading.Lock()
        os.makedirs(os.path.dirname(log_file), exist_ok=True)
        self.log_file = open(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", buffering=1)
        self.screens = [fd for path in ("/dev/tty1", serial_port()) if path and (fd := _open(path)) is not None]

    def say(self, text):
        """Shows a line on the screens, and in the journal and the log."""
        self.log(text)
        line = f"[stand-in {time.monotonic() - self.begin:6.1f}s] {text}\r\n".encode(errors="replace")
        with self.lock:
            for fd in self.screens:
                try:
                    os.write(fd, line)
                except OSError:
                    pass

    def log(self, text):
        """Keeps a line in the journal and the log alone."""
        with self.lock:
            print(text, flush=True)
            self.log_file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def on_line(self, handle):
        """Calls `handle` with each line typed on tty1."""

        def read():
            try:
                with open("/dev/tty1", encoding="utf-8", errors="replace") as tty:
                    for line in tty:
                        handle(line.strip())
            except OSError as error:
                self.log(f"nobody can type on tty1: {error}")

        threading.Thread(target=read, daemon=True).start()


def _open(path):
    try:
        return os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
