"""What other tools are given: pairs, replies, a model."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from reported import SETTINGS, make_project, measured
from typer.testing import CliRunner

from srlm_pipeline.cli import app
from srlm_pipeline.errors import EmptyDataError, HubError, ModelError, TableError
from srlm_pipeline.evaluation.assessment import write_assessment
from srlm_pipeline.exports import Format, export_model, export_pairs, export_replies, iterations_with
from srlm_pipeline.store import ProjectStore
from srlm_pipeline.tables import PREFERENCE_PAIRS, read_table


@pytest.fixture
def store(tmp_path: Path) -> ProjectStore:
    return make_project(tmp_path / "project")


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_pairs_can_be_loaded_as_trl_takes_them(store: ProjectStore, tmp_path: Path, form: Format) -> None:
    target = tmp_path / "pairs"
    assert export_pairs(store, [1, 2], SETTINGS, target, form) == 2
    rows = load_dataset(str(target), split="train", cache_dir=str(tmp_path / "cache"))
    pair = read_table(PREFERENCE_PAIRS, store.table_path("preference_pairs", 1)).iloc[0]
    assert rows[0]["prompt"] == [{"role": "user", "content": pair["prompt"]}]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": pair["chosen"]}]
    assert rows[0]["rejected"] == [{"role": "assistant", "content": pair["rejected"]}]
    assert rows["iteration"] == [1, 2]
    card = DatasetCard.load(target / "README.md")
    assert "trl" in card.data.tags
    assert "2 rows (1 of iter_001, 1 of iter_002)" in card.text
    assert SETTINGS.base_model in card.text


def test_replies_are_those_that_score_well(store: ProjectStore, tmp_path: Path) -> None:
    target = tmp_path / "replies"
    # Of 4.3, 1.9, 3, 3, none and 2, whole and different ones.
    assert export_replies(store, [1], 3.0, SETTINGS, target, "jsonl") == 3
    rows = [json.loads(line) for line in (target / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(row["score"] for row in rows) == [3.0, 3.0, 4.3]
    assert rows[0]["completion"][0]["role"] == "assistant"
    with pytest.raises(EmptyDataError, match=r"no replies that score at least 4\.9"):
        export_replies(store, [1], 4.9, SETTINGS, tmp_path / "none", "jsonl")
    assert not (tmp_path / "none").exists()


def test_what_is_not_made_yet_is_said(store: ProjectStore, tmp_path: Path) -> None:
    assert iterations_with(store, "preference_pairs") == [1, 2]
    with pytest.raises(TableError, match="materialize"):
        export_pairs(store, [3], SETTINGS, tmp_path / "pairs", "parquet")


def test_a_model_carries_lineage_verdict_and_figures(store: ProjectStore, tmp_path: Path) -> None:
    model = store.checkpoint("M3")
    write_assessment(measured("M3"), store, model)
    export_model(store, model, SETTINGS, tmp_path / "out" / "M3")
    assert (tmp_path / "out" / "M3" / "weights").read_text() == "M3"
    card = ModelCard.load(tmp_path / "out" / "M3" / "README.md")
    assert card.data.base_model == SETTINGS.base_model
    assert "refused it over M2" in card.text and "more than 55.0% needed" in card.text
    assert "| closed tasks solved | 83.3% |" in card.text
    assert model.digest in card.text and model.parent in card.text


def test_the_licence_is_that_of_the_base(store: ProjectStore, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n", encoding="utf-8")
    settings = SETTINGS.model_copy(update={"base_model": str(base)})
    export_model(store, store.checkpoint("M1"), settings, tmp_path / "M1")
    assert ModelCard.load(tmp_path / "M1" / "README.md").data.license == "mit"
    export_model(store, store.checkpoint("M1"), SETTINGS, tmp_path / "again")
    assert ModelCard.load(tmp_path / "again" / "README.md").data.license is None


def test_nothing_is_written_over(store: ProjectStore, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for export in (
        lambda: export_pairs(store, [1], SETTINGS, tmp_path / "mine", "jsonl"),
        lambda: export_model(store, store.checkpoint("M1"), SETTINGS, tmp_path / "mine"),
    ):
        with pytest.raises(ModelError, match="is there already"):
            export()
    assert not list((tmp_path / "mine").iterdir())


def test_the_command_line_exports_all_iterations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    make_project(home / "srlm" / "quickstart")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.delenv("SRLM_CONFIG", raising=False)
    done = CliRunner().invoke(app, ["export", "pairs", str(tmp_path / "pairs"), "--format", "jsonl"])
    assert done.exit_code == 0, done.output
    assert "2 pairs" in done.output
    assert len((tmp_path / "pairs" / "train.jsonl").read_text(encoding="utf-8").splitlines()) == 2


class Hub(BaseHTTPRequestHandler):
    """As much of the model hub as an upload of small files asks for."""

    made: ClassVar[list[dict[str, Any]]] = []
    files: ClassVar[dict[str, bytes]] = {}
    tokens: ClassVar[set[str]] = set()
    refuses = False

    def do_POST(self) -> None:
        body = self._body()
        self.tokens.add(self.headers["Authorization"])
        if Hub.refuses:
            self._answer(403, {"error": "this token may only read"})
        elif self.path == "/api/repos/create":
            self.made.append(json.loads(body))
            asked = json.loads(body)
            here = f"http://{self.headers['Host']}/datasets/{asked['organization']}/{asked['name']}"
            self._answer(200, {"url": here, "name": "me/pairs"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            told = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            self._answer(200, {"files": told})
        elif "/commit/" not in self.path:
            # Whether the card is well formed.
            self._answer(200, {"errors": [], "warnings": []})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(
                200,
                {
                    "commitUrl": f"http://{self.headers['Host']}/datasets/me/pairs/commit/1",
                    "commitOid": "1",
                    "success": True,
                },
            )

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        # A commit comes in chunks, each with its length.
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self._answer(200, {"sha": "0", "id": "me/x", "siblings": []})

    def log_message(self, format: str, *args: Any) -> None:
        pass


PUSH = """
import sys
from pathlib import Path
from srlm_pipeline.errors import HubError
from srlm_pipeline.hub import push
try:
    print(push(Path(sys.argv[1]), "me/pairs", "dataset", public=False))
except HubError as error:
    print("refused:", error)
"""


def test_an_export_goes_to_the_hub_where_that_is_asked_for(
    store: ProjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_pairs(store, [1, 2], SETTINGS, tmp_path / "pairs", "jsonl")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_of_the_environment"}

    def pushed(**more: str) -> str:
        # The library reads its address when it is imported.
        environment = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), **told, **more}
        command = [sys.executable, "-c", PUSH, str(tmp_path / "pairs")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    try:
        said = pushed()
        assert said.startswith("http") and said.strip().endswith("/me/pairs"), said
        assert [(m["name"], m["type"], m["visibility"]) for m in Hub.made] == [("pairs", "dataset", "private")]
        assert Hub.files == {path.name: path.read_bytes() for path in (tmp_path / "pairs").iterdir()}
        assert Hub.tokens == {"Bearer hf_of_the_environment"}
        monkeypatch.setattr(Hub, "refuses", True)
        said = pushed()
        assert said.startswith("refused: hub, repository me/pairs: ") and "is written, and was not sent" in said
        assert "hf_of" not in said
    finally:
        server.shutdown()
        server.server_close()


def test_without_a_token_nothing_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path / "home" / "srlm" / "quickstart")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SRLM_CONFIG", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    done = CliRunner().invoke(app, ["export", "pairs", str(tmp_path / "pairs"), "--push", "me/pairs"])
    assert isinstance(done.exception, HubError)
    assert not (tmp_path / "pairs").exists()
