"""What others see of the installer: the reports and the socket."""

import http.client
import http.server
import json
import os
import socket
import stat
import tempfile
import threading
import time
import unittest

from standin import api
from standin.report import Events


class Receiver:
    """A webhook endpoint that keeps what it gets."""

    def __init__(self, status=204):
        self.got = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.headers, json.loads(body)))
                self.send_response(status)
                self.end_headers()

            def log_message(self, format, *arguments):
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/e/token"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Reports(unittest.TestCase):
    def receive(self, status=204):
        receiver = Receiver(status)
        self.addCleanup(receiver.close)
        logged = []
        events = Events(logged.append)
        events.configure({"forge": {"type": "webhook", "endpoint": receiver.url, "level": "INFO"}, "p": {"type": "print"}})
        return receiver, events, logged

    def test_start_and_finish(self):
        receiver, events, _ = self.receive()
        with events.span("subiquity/Shutdown/shutdown", "mode=POWEROFF"):
            pass
        (headers, start), (_, finish) = receiver.got
        self.assertTrue(headers["User-Agent"].startswith("Curtin/"))
        self.assertEqual(headers["Content-Type"], "application/json")
        self.assertEqual(sorted(start), ["description", "event_type", "level", "name", "origin", "timestamp"])
        self.assertEqual((start["event_type"], start["origin"], start["level"]), ("start", "curtin", "INFO"))
        self.assertEqual((finish["event_type"], finish["result"]), ("finish", "SUCCESS"))

    def test_failure_carries_its_reason(self):
        receiver, events, _ = self.receive()
        with self.assertRaises(RuntimeError), events.span("a/b"):
            raise RuntimeError("why")
        self.assertEqual((receiver.got[-1][1]["result"], receiver.got[-1][1]["description"]), ("FAIL", "why"))

    def test_level_is_not_applied(self):
        receiver, events, _ = self.receive()
        with events.span("a", level="DEBUG"):
            pass
        self.assertEqual([event["level"] for _, event in receiver.got], ["DEBUG", "DEBUG"])

    def test_refusals_are_only_logged(self):
        for status in (404, 500):
            _, events, logged = self.receive(status)
            events.emit("info", "a")
            self.assertTrue(any("failed posting" in line for line in logged))
        events = Events(lambda line: None)
        events.configure({"x": {"type": "webhook", "endpoint": "http://127.0.0.1:9/"}})
        events.emit("info", "a")

    def test_a_silent_server_freezes(self):
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            events = Events(lambda line: None)
            events.configure({"x": {"type": "webhook", "endpoint": f"http://127.0.0.1:{silent.getsockname()[1]}/"}})
            thread = threading.Thread(target=events.emit, args=("info", "a"), daemon=True)
            thread.start()
            thread.join(1)
            self.assertTrue(thread.is_alive())
            silent.accept()[0].close()
            thread.join(5)


class Socket(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "run", "socket")
        self.state = api.State(lambda line: None)
        self.server = api.serve(self.state, Events(lambda line: None), self.path)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def ask(self, method, path):
        link = http.client.HTTPConnection("localhost")
        link.sock = socket.socket(socket.AF_UNIX)
        link.sock.connect(self.path)
        link.request(method, path)
        answer = link.getresponse()
        body = answer.read()
        link.close()
        return answer.status, body

    def test_anyone_may_ask(self):
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o666)

    def test_status(self):
        for name in api.STATES:
            self.state.set(name)
            status, body = self.ask("GET", "/meta/status")
            self.assertEqual((status, json.loads(body)["state"]), (200, name))

    def test_status_waits_for_a_change(self):
        self.state.set("WAITING")
        threading.Timer(0.3, self.state.set, ["RUNNING"]).start()
        begin = time.monotonic()
        _, body = self.ask("GET", "/meta/status?cur=%22WAITING%22")
        self.assertEqual(json.loads(body)["state"], "RUNNING")
        self.assertGreater(time.monotonic() - begin, 0.2)

    def test_confirm(self):
        self.state.set("NEEDS_CONFIRMATION")
        for query in ("?tty=forge", "", "?tty=1", "?tty=%22%22"):
            self.assertEqual(self.ask("POST", f"/meta/confirm{query}")[0], 500)
            self.assertEqual(self.state.confirming_tty, "")
        self.assertEqual(self.ask("POST", "/meta/confirm?tty=%22forge%22"), (200, b"null"))
        self.state.wait_for_confirmation()

    def test_confirming_too_early_does_not_count(self):
        self.state.set("WAITING")
        self.ask("POST", "/meta/confirm?tty=%22forge%22")
        self.assertEqual(self.state.confirming_tty, "")

    def test_other_paths(self):
        self.assertEqual(self.ask("GET", "/")[0], 404)
        self.assertEqual(self.ask("POST", "/meta/restart")[0], 404)
        self.assertEqual(self.ask("GET", "/meta/confirm?tty=%22x%22")[0], 404)


if __name__ == "__main__":
    unittest.main()
