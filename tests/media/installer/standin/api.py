"""The installer's state and the socket on which others ask for it.

HTTP over /run/subiquity/socket (mode 0666):
`GET /meta/status` answers {"state": …}; with `?cur="STATE"` it waits until the
state is another one. `POST /meta/confirm?tty="NAME"` (a JSON string) confirms,
and only counts while the state is NEEDS_CONFIRMATION.
"""

import http.server
import json
import os
import socketserver
import threading
import urllib.parse

SOCKET = "/run/subiquity/socket"

STATES = (
    "STARTING_UP CLOUD_INIT_WAIT EARLY_COMMANDS WAITING NEEDS_CONFIRMATION RUNNING "
    "UU_RUNNING LATE_COMMANDS DONE ERROR EXITED"
).split()


class State:
    """The state, shared between the installer and those who ask."""

    def __init__(self, log=print):
        self.log = log
        self.name = "STARTING_UP"
        self.confirming_tty = ""
        self.changed = threading.Condition()

    def set(self, name):
        assert name in STATES, name
        with self.changed:
            self.name = name
            self.changed.notify_all()
        self.log(f"state {name}")

    def confirm(self, tty):
        with self.changed:
            if self.name != "NEEDS_CONFIRMATION":
                self.log(f"confirmation by {tty} ignored in state {self.name}")
                return
            self.confirming_tty = tty
            self.changed.notify_all()

    def wait_for_confirmation(self):
        """Blocks until someone confirms: for ever, if nobody does."""
        with self.changed:
            self.changed.wait_for(lambda: self.confirming_tty)

    def wait_while(self, name):
        with self.changed:
            self.changed.wait_for(lambda: self.name != name)

    def status(self):
        return {
            "state": self.name,
            "confirming_tty": self.confirming_tty,
            "error": None,
            "nonreportable_error": None,
            "cloud_init_ok": True,
            "interactive": False,
            "echo_syslog_id": "subiquity_echo",
            "log_syslog_id": "subiquity_log",
            "event_syslog_id": "subiquity_event",
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "standin"

    def do_GET(self):
        path, query = self._split()
        if path != "/meta/status":
            return self._answer(404, "404: Not Found")
        try:
            current = json.loads(query["cur"]) if "cur" in query else None
        except ValueError as error:
            return self._answer(500, f"cur is not JSON: {error}")
        if current is not None:
            self.server.state.wait_while(current)
        with self.server.span("subiquity/Meta/status_GET"):
            return self._answer(200, json.dumps(self.server.state.status()))

    def do_POST(self):
        path, query = self._split()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path != "/meta/confirm":
            return self._answer(404, "404: Not Found")
        try:
            tty = json.loads(query["tty"])
        except (KeyError, ValueError) as error:
            return self._answer(500, f"tty is not a JSON string: {error!r}")
        if not isinstance(tty, str) or not tty:
            return self._answer(500, "tty is not a JSON string")
        with self.server.span("subiquity/Meta/confirm_POST"):
            self.server.state.confirm(tty)
            return self._answer(200, "null")

    def _split(self):
        parts = urllib.parse.urlsplit(self.path)
        return parts.path, dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))

    def _answer(self, code, text):
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "local"

    def log_message(self, format, *arguments):
        pass


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def serve(state, events, path=SOCKET):
    """Starts answering on the socket and returns the server."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path):
        os.unlink(path)
    server = _Server(path, _Handler)
    os.chmod(path, 0o666)
    server.state = state
    server.span = lambda name: events.span(name, level="DEBUG")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
