"""Stands in for vLLM: its command line and its socket, with a helper process and an answer that is always the same.

Notes in the file FAKE_VLLM_NOTES how it was started, as one line of JSON. With `--meets N` it is up once N have been
started; the file FAKE_VLLM_KILL makes the first one that is asked after it is there die as if it were killed.
"""

import json
import os
import signal
import socketserver
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

ARGUMENTS = sys.argv[1:]
MODEL = ARGUMENTS[1]
NOTES = Path(os.environ["FAKE_VLLM_NOTES"])


def after(option):
    return ARGUMENTS[ARGUMENTS.index(option) + 1]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if "--meets" in ARGUMENTS and len(NOTES.read_text().splitlines()) < int(after("--meets")):
            self.send_error(503)
            return
        self.answer({"data": [{"id": MODEL}]})

    def do_POST(self):
        if "--dies" in ARGUMENTS:
            print("RuntimeError: CUDA error: an illegal memory access was encountered", flush=True)
            os._exit(3)
        kill = Path(os.environ.get("FAKE_VLLM_KILL") or "/no/such/file")
        if kill.exists():
            kill.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
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
with NOTES.open("a") as notes:
    environment = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "DO_NOT_TRACK", "VLLM_API_KEY")}
    note = {"arguments": ARGUMENTS, "processes": [os.getpid(), helper.pid], "environment": environment}
    print(json.dumps(note), file=notes)
Server(after("--uds"), Handler).serve_forever()
