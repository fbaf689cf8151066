"""Stands in for vLLM: its command line and its socket, with a helper process and an answer that is always the same.

Notes in the file FAKE_VLLM_NOTES how it was started, as one line of JSON.
"""

import json
import os
import socketserver
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

ARGUMENTS = sys.argv[1:]
MODEL = ARGUMENTS[1]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"data": [{"id": MODEL}]})

    def do_POST(self):
        if "--dies" in ARGUMENTS:
            print("RuntimeError: CUDA error: an illegal memory access was encountered", flush=True)
            os._exit(3)
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        self.answer(
            {
                "choices": [{"text": "always the same", "finish_reason": "stop"}],
                "usage": {"prompt_tokens": len(prompt), "completion_tokens": 4},
            }
        )

    def answer(self, body):
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def address_string(self):
        return "socket"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if "--fails" in ARGUMENTS:
    print("INFO: loading\nValueError: Head size 8 is not supported\nINFO: ending", flush=True)
    sys.exit(1)
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with Path(os.environ["FAKE_VLLM_NOTES"]).open("a") as notes:
    environment = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "DO_NOT_TRACK", "VLLM_API_KEY")}
    note = {"arguments": ARGUMENTS, "processes": [os.getpid(), helper.pid], "environment": environment}
    print(json.dumps(note), file=notes)
Server(ARGUMENTS[ARGUMENTS.index("--uds") + 1], Handler).serve_forever()
