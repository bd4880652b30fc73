"""An upload is tried against a hub on loopback that keeps what it is sent."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants as hub
import pytest

from fedsdr.errors import UserError
from fedsdr.runs.hub_upload import check_hub_name, push_to_hub


class FakeHub(BaseHTTPRequestHandler):
    """The four requests of huggingface_hub's upload_folder, with small files alone."""

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.tokens.add(self.headers.get("Authorization"))
        url = f"{server.url}/org/small"
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.answer(401, {"error": "Invalid token"})
        if self.path == "/api/repos/create":
            server.created = json.loads(body)
            return self.answer(200, {"url": url})
        if "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            return self.answer(200, {"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    server.files[value["path"]] = base64.b64decode(value["content"])
            return self.answer(200, {"commitOid": "0" * 40, "commitUrl": f"{url}/commit/0"})
        return self.answer(200, {"errors": [], "warnings": []})  # validate-yaml

    def do_GET(self):
        self.answer(404, {"error": "nothing here"})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def fake_hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.files, server.tokens, server.created = {}, set(), {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(hub, "ENDPOINT", server.url)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "README.md").write_text("---\nlibrary_name: peft\n---\n# A\n")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    return tmp_path / "a"


def test_every_file_of_the_folder_arrives_in_a_private_repository(fake_hub, folder):
    said = push_to_hub(folder, "org/small")
    assert fake_hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert fake_hub.created["name"] == "small"
    assert fake_hub.created["organization"] == "org"
    made = fake_hub.created
    assert made.get("visibility") == "private" or made.get("private") is True
    assert fake_hub.tokens == {"Bearer hf_right"}
    assert said == f"uploaded to {fake_hub.url}/org/small"


def test_a_token_that_the_hub_refuses_is_one_line_with_the_way_on(fake_hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="hf auth login; then: hf upload org/small") as caught:
        push_to_hub(folder, "org/small")
    assert "\n" not in str(caught.value)
    assert fake_hub.files == {}


def test_a_hub_that_cannot_be_reached_is_one_line_and_the_folder_stays(
    fake_hub, folder, monkeypatch
):
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"--push-to-hub: .*is written") as caught:
        push_to_hub(folder, "org/small")
    assert "\n" not in str(caught.value)
    assert (folder / "README.md").exists()


def test_a_name_that_cannot_be_one_is_refused_before_anything_is_written(fedsdr, tmp_path):
    with pytest.raises(UserError, match="--push-to-hub"):
        check_hub_name("a/b/c")
    code, _, err = fedsdr("export", tmp_path, "--out", tmp_path / "a", "--push-to-hub", "a b")
    assert (code, err.count("\n")) == (2, 1)
    assert "--push-to-hub" in err
