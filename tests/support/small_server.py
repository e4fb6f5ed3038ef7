"""A server that answers ``/health`` with its process id; the model ``bad`` fails, ``hang`` never
starts."""

from __future__ import annotations

import argparse
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("model", "host", "port"):
        parser.add_argument(f"--{name}")
    options = parser.parse_args()
    if options.model == "bad":
        sys.exit("no model called bad")
    if options.model == "hang":
        time.sleep(600)
    print(f"serving {options.model}", flush=True)
    HTTPServer((options.host, int(options.port)), Handler).serve_forever()
