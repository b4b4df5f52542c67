"""Progress events: to the journal always, to webhooks when the answers ask for it.

The webhook is synchronous, has no timeout and no second try, and takes every
event whatever its level: a server that accepts and stays silent freezes the
install. That is how the genuine installer behaves.
"""

import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

USER_AGENT = "Curtin/23.1+standin"


class Webhook:
    """One endpoint that takes each event as a POST."""

    def __init__(self, endpoint, oauth=None):
        self.endpoint = endpoint
        self.oauth = oauth or {}

    def headers(self):
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
        if self.oauth.get("consumer_key"):
            secret = self.oauth.get("consumer_secret") or ""
            headers["Authorization"] = (
                f'OAuth realm="", oauth_consumer_key="{self.oauth["consumer_key"]}", '
                f'oauth_token="{self.oauth["token_key"]}", oauth_signature_method="PLAINTEXT", '
                f'oauth_signature="{secret}%26{self.oauth["token_secret"]}", '
                f'oauth_timestamp="{int(time.time())}", oauth_nonce="{time.time_ns()}", oauth_version="1.0"'
            )
        return headers

    def send(self, event, log):
        request = urllib.request.Request(
            self.endpoint, data=json.dumps(event).encode(), headers=self.headers(), method="POST"
        )
        try:
            with urllib.request.urlopen(request) as answer:
                answer.read()
        except (OSError, urllib.error.URLError, ValueError) as error:
            log(f"failed posting event {event['name']}: {error}")


class Events:
    """Sends events in order; one lock, because the genuine event loop is one too."""

    def __init__(self, log=print):
        self.log = log
        self.webhooks = []
        self.lock = threading.RLock()

    def configure(self, reporting):
        """Takes the `reporting` section; replaces what an earlier file said."""
        self.webhooks = [
            Webhook(handler["endpoint"], handler)
            for handler in (reporting or {}).values()
            if handler.get("type") == "webhook"
        ]

    def emit(self, kind, name, description="", level="INFO", result=None):
        event = {
            "name": name,
            "description": description,
            "event_type": kind,
            "origin": "curtin",
            "timestamp": time.time(),
            "level": level,
        }
        if kind == "finish":
            event["result"] = result or "SUCCESS"
        with self.lock:
            if level != "DEBUG":
                self.log(f"{kind}: {name}: {event.get('result', '')} {description}".rstrip())
            for webhook in self.webhooks:
                webhook.send(event, self.log)

    @contextmanager
    def span(self, name, description="", level="INFO"):
        """A start event, and a finish event that says how it ended."""
        self.emit("start", name, description, level)
        try:
            yield name
        except BaseException as error:
            self.emit("finish", name, str(error), level, "FAIL")
            raise
        self.emit("finish", name, description, level, "SUCCESS")
