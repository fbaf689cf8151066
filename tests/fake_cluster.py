"""Stands in for a cluster's API server: takes jobs, and runs the commands of their containers as processes here."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml


@dataclass
class FakeCluster:
    """Attributes: its address; jobs and processes by the jobs' names; the environment of all containers."""

    environment: Mapping[str, str]
    address: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        name = job["metadata"]["name"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        own = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
        self.jobs[name] = job
        program, *arguments = container["args"]
        command = [sys.executable, "-m", program, *arguments]
        self.processes[name] = subprocess.Popen(command, env={**os.environ, **self.environment, **own})
        return self.job(name)

    def job(self, name: str) -> dict[str, Any]:
        code = self.processes[name].poll()
        status = {"active": 1} if code is None else {"failed": 1} if code else {"succeeded": 1}
        return {**self.jobs[name], "status": status}

    def write_kubeconfig(self, path: Path) -> None:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": self.address}}],
            "users": [{"name": "somebody", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "somebody"}}],
            "current-context": "fake",
        }
        path.write_text(yaml.safe_dump(content), encoding="utf-8")


class _Handler(BaseHTTPRequestHandler):
    @property
    def cluster(self) -> FakeCluster:
        return self.server.cluster  # type: ignore[attr-defined, no-any-return]

    def do_POST(self) -> None:
        assert self.path.partition("?")[0].endswith("/jobs"), self.path
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(201, self.cluster.run(body))

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].split("/")
        named = parts[parts.index("jobs") + 1] if "jobs" in parts[:-1] else ""
        if named in self.cluster.jobs:
            self._answer(200, self.cluster.job(named))
        else:
            self._answer(200, {"items": []})

    def do_DELETE(self) -> None:
        self._answer(200, {"kind": "Status", "status": "Success"})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def fake_cluster(environment: Mapping[str, str]) -> Iterator[FakeCluster]:
    """Run one until the block ends; no process outlives it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    cluster = FakeCluster(environment, f"http://127.0.0.1:{server.server_port}")
    server.cluster = cluster  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        for process in cluster.processes.values():
            process.kill()
            process.wait()
        server.shutdown()
        server.server_close()
        thread.join()
