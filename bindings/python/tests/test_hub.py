"""A hub id that is not in the cache is fetched once, however many ranks ask for it: against a hub of our own on this machine."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("huggingface_hub")
from safetensors.torch import save_file  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import sys, shardwright, torch
model = torch.nn.Linear(8, 8)
print(shardwright.fill(model, sys.argv[1]).bytes_read, float(model.weight.sum()))
"""


class Hub(http.server.ThreadingHTTPServer):
    """Serves one repository as the hub does, and counts what is downloaded."""

    def __init__(self, folder, name):
        self.folder, self.name, self.got = folder, name, []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def respond(self, status, body=b"", kind="application/json", **headers):
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        hub = self.server
        path = self.path.split("?")[0]
        files = sorted(p.name for p in hub.folder.iterdir())
        if path.startswith(f"/api/models/{hub.name}/tree/"):
            return self.respond(200, json.dumps([{"type": "file", "path": f, "size": 1, "oid": COMMIT} for f in files]).encode())
        if path.startswith(f"/api/models/{hub.name}"):
            about = {"id": hub.name, "modelId": hub.name, "sha": COMMIT, "private": False, "tags": [], "siblings": [{"rfilename": f} for f in files]}
            return self.respond(200, json.dumps(about).encode())
        if path.startswith(f"/{hub.name}/resolve/") and path.rsplit("/", 1)[1] in files:
            name = path.rsplit("/", 1)[1]
            body = (hub.folder / name).read_bytes()
            if self.command == "GET":
                hub.got.append(name)
            return self.respond(200, body, "application/octet-stream", ETag=f'"{hashlib.sha256(body).hexdigest()}"', Accept_Ranges="bytes")
        return self.respond(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    weights = {"weight": torch.arange(64.0).view(8, 8), "bias": torch.zeros(8)}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    server = Hub(folder, "acme/tiny")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def start(hub, tmp_path, name, **env):
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "TRANSFORMERS_OFFLINE"},
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "no_proxy": "127.0.0.1",
        **env,
    }
    return subprocess.Popen([sys.executable, "-c", CODE, name], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_repository_is_fetched_once(hub, tmp_path):
    ranks = [start(hub, tmp_path, "acme/tiny", LOCAL_RANK=str(r)) for r in range(2)]
    done = [rank.communicate(timeout=300) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), done
    assert all(out == "288 2016.0\n" for out, _ in done)
    assert sorted(hub.got) == ["config.json", "model.safetensors"], hub.got
    again = start(hub, tmp_path, "acme/tiny", HF_HUB_OFFLINE="1")
    assert again.communicate(timeout=300)[0] == "288 2016.0\n" and len(hub.got) == 2


def test_a_repository_without_safetensors_is_fetched_too(hub, tmp_path):
    (hub.folder / "model.safetensors").unlink()
    torch.save({"weight": torch.arange(64.0).view(8, 8), "bias": torch.zeros(8)}, hub.folder / "pytorch_model.bin")
    out, err = start(hub, tmp_path, "acme/tiny").communicate(timeout=300)
    assert out == "288 2016.0\n", err
    assert sorted(hub.got) == ["config.json", "pytorch_model.bin"], hub.got


def test_offline_and_unknown_repositories_are_errors(hub, tmp_path):
    for name, env in (("acme/tiny", {"HF_HUB_OFFLINE": "1"}), ("acme/nothing", {})):
        out, err = start(hub, tmp_path, name, **env).communicate(timeout=300)
        assert not out and "CheckpointError" in err and name in err, err
    assert not hub.got
