"""Models from a hub, converted once; known names; and models pushed with a card."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
from drawn import checkpoint
from hub_server import served_repository
from models import with_tokenizer

from dinotxt_jax import UserError, list_models
from dinotxt_jax.hub.card import model_card
from dinotxt_jax.hub.fetched import local_model
from dinotxt_jax.hub.pushing import push
from dinotxt_jax.storage.model_directory import read_description

LOAD = "import dinotxt_jax as dt; print(repr(dt.load({address!r})))"
RESULT = {
    "kind": "retrieval",
    "metrics": {"image_to_text_r1": 12.34, "text_to_image_r1": 5.0},
    "protocol": {"resolution": 224},
}


def test_a_model_on_a_hub_is_converted_once(web: Any, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    config = {
        "vision_config": {"hidden_act": "quick_gelu", "num_attention_heads": 4},
        "text_config": {"hidden_act": "quick_gelu", "num_attention_heads": 2},
    }
    environment = commands.environment(
        **served_repository(web, checkpoint("hf_clip", e=40), config),
        HF_HOME=str(tmp_path / "hub"),
        DINOTXT_CACHE=str(tmp_path / "cache"),
    )
    code = LOAD.format(address="hf://someone/model@main")
    for _ in range(2):
        done = commands.run(["-c", code], env=environment, cwd=tmp_path, fresh=True)
        assert done.returncode == 0, done.stderr
        assert "width 64, 2 blocks, 4 heads" in done.stdout
    (folder,) = (path for path in (tmp_path / "cache/models").iterdir() if path.is_dir())
    assert read_description(folder).vision.activation == "quick_gelu"
    assert "converting" not in done.stderr  # the second time, it was there


def test_other_paths_are_left_as_they_are(tmp_path: Path) -> None:
    assert local_model(tmp_path) == tmp_path
    assert local_model("gs://bucket/model") == "gs://bucket/model"


def test_known_models_have_different_names_and_addresses() -> None:
    models = list_models()
    assert len({model.name for model in models}) == len(models) > 40
    assert len({model.source for model in models}) == len(models)
    assert all(model.source.startswith("hf://") and model.can for model in models)


def test_the_known_models_are_printed(tmp_path: Path) -> None:
    done = commands.run(["-m", "dinotxt_jax.models"], cwd=tmp_path, env=commands.environment())
    assert "clip_vitb16" in done.stdout
    assert "hf://google/siglip2-base-patch16-224" in done.stdout


class Received:
    """What a hub got: the paths of requests, and the files of commits."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.files: dict[str, bytes] = {}
        self.root = ""


@pytest.fixture
def receiver() -> Iterator[Received]:
    """Serves the part of the hub's interface that accepts small files in a commit."""
    received = Received()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            received.paths.append(path)
            answer: dict[str, Any] = {"url": f"{received.root}/me/mine"}
            if "/preupload/" in path:
                files = json.loads(body)["files"]
                modes = [{"path": file["path"], "uploadMode": "regular"} for file in files]
                answer = {"files": [mode | {"shouldIgnore": False} for mode in modes]}
            elif "/commit/" in path:
                for line in filter(None, body.splitlines()):
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        content = base64.b64decode(entry["value"]["content"])
                        received.files[entry["value"]["path"]] = content
                answer = {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"{received.root}/me/mine/commit/{'0' * 40}",
                }
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        received.root = f"http://127.0.0.1:{server.server_port}"
        yield received
        server.shutdown()


def test_a_model_is_pushed_with_its_card(
    receiver: Received, tiny_dinotxt: Path, tmp_path: Path
) -> None:
    pytest.importorskip("huggingface_hub")
    model = with_tokenizer(tiny_dinotxt, tmp_path / "model", ("a red circle", "a blue square"))
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/results.json").write_text(json.dumps({"flickr": RESULT}))
    done = commands.run(
        [
            *("-m", "dinotxt_jax.push", f"--model={model}", "--to=hf://me/mine"),
            *("--results=evaluation", "--licence=mit"),
        ],
        env=commands.environment(
            HF_ENDPOINT=receiver.root,
            HF_HOME=str(tmp_path / "hub"),
            HF_TOKEN="hf_test",
            HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_DISABLE_XET="1",
        ),
        cwd=tmp_path,
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{receiver.root}/me/mine/commit/{'0' * 40}"
    stored = {str(file.relative_to(model)) for file in model.rglob("*") if file.is_file()}
    assert set(receiver.files) == stored | {"README.md"}
    assert receiver.files["model.json"] == (model / "model.json").read_bytes()
    card = receiver.files["README.md"].decode()
    assert 'dt.load("hf://me/mine")' in card
    assert "license: mit" in card
    assert "| mine | 12.3 | 5.0 |" in card


def test_a_card_without_results_has_no_table_of_them(tiny_dinotxt: Path) -> None:
    card = model_card("me/mine", read_description(tiny_dinotxt), {}, "other")
    assert "## Results" not in card
    assert "sha256" in card


@pytest.mark.parametrize(
    ("target", "message"),
    [("me/mine", "is not of the form hf://ORG/NAME"), ("hf://mine", "is not of the form")],
)
def test_targets_that_make_no_sense_are_named(
    target: str, message: str, tiny_dinotxt: Path
) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(UserError, match=message):
        push(str(tiny_dinotxt), target)
