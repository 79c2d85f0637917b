"""Receives letters from visit-relay: verifies each, makes one deal of it, answers the deal. Python 3.9, no packages.

    RELAY_WEBHOOK_SECRET=whsec_… RELAY_WEBHOOK_DIR=/var/lib/letters python3 receiver.py 8080

While the secret is being exchanged, RELAY_WEBHOOK_SECRET holds both, a space between them. One process, behind a web
server that has TLS. Every letter becomes a file of one JSON line in RELAY_WEBHOOK_DIR, named by its webhook-id.
"""

import base64
import hmac
import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LIMIT = 8_000_000  # octets of a body; the largest has 1 MB of text, more in JSON's escapes
TOLERANCE = 300  # seconds that the sender's clock and ours may differ
SECRETS = [secret.removeprefix("whsec_") for secret in os.environ.get("RELAY_WEBHOOK_SECRET", "").split()]
KEYS = [base64.b64decode(secret + "=" * (-len(secret) % 4)) for secret in SECRETS]
LETTERS = Path(os.environ.get("RELAY_WEBHOOK_DIR", ""))
ONE_AT_A_TIME = threading.Lock()


def new_deal(letter):
    """Here the CRM makes its deal. Subject, text and names were written by strangers: escape them where they show."""
    number = os.urandom(16).hex()
    return {"deal_id": number, "deal_url": f"https://crm.example.com/deals/{number}"}


def doubt(event, timestamp, signatures, body):
    """Why this was not sent by whoever has our secret, just now; None if it was."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", event):  # becomes a file's name
        return "webhook-id is missing or malformed"
    if not re.fullmatch(r"[0-9]{1,12}", timestamp) or abs(time.time() - int(timestamp)) > TOLERANCE:
        return "webhook-timestamp is missing or more than 5 minutes from now"
    for key in KEYS:
        good = b"v1," + base64.b64encode(hmac.digest(key, f"{event}.{timestamp}.".encode() + body, "sha256"))
        if any(hmac.compare_digest(good, given.encode()) for given in signatures.split(" ")):
            return None
    return "webhook-signature is missing or not made with our secret"


def receive(headers, stream):
    """Status and answer."""
    length, event = headers.get("Content-Length", ""), headers.get("webhook-id", "")
    if not re.fullmatch(r"[0-9]{1,7}", length) or int(length) > LIMIT:
        return 413, {"error": f"Content-Length must be there and at most {LIMIT}"}
    body = stream.read(int(length))
    if reason := doubt(event, headers.get("webhook-timestamp", ""), headers.get("webhook-signature", ""), body):
        return 401, {"error": reason}
    try:
        letter = json.loads(body)
    except (ValueError, RecursionError):
        letter = None
    if not isinstance(letter, dict):
        return 400, {"error": "not a JSON object"}
    file, new = LETTERS / f"{event}.json", LETTERS / f"{event}.json.new"
    with ONE_AT_A_TIME:
        if not file.exists():  # else it is a retry or a replay, and gets the same answer
            line = json.dumps({"webhook_id": event, "answer": new_deal(letter), "letter": letter})
            with new.open("w") as stored:
                stored.write(line + "\n")
                stored.flush()
                os.fsync(stored.fileno())  # what was answered with 200 is not sent again
            new.replace(file)
        return 200, json.loads(file.read_text())["answer"]


class Receiver(BaseHTTPRequestHandler):
    timeout = 15

    def do_POST(self):
        try:
            status, answer = receive(self.headers, self.rfile)
        except Exception as error:
            self.log_error("%r", error)
            status, answer = 500, {"error": "try again later"}
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


if not KEYS or min(map(len, KEYS)) < 24 or not LETTERS.is_absolute() or not LETTERS.is_dir():
    sys.exit("RELAY_WEBHOOK_SECRET must be whsec_…, RELAY_WEBHOOK_DIR the absolute path of a directory")
os.umask(0o077)  # letters are nobody else's business
ThreadingHTTPServer.request_queue_size = 64  # letters come ten at once
server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver)
print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
