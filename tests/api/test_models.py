"""Models: only folders below the roots, only safetensors, nothing that could run or lead elsewhere."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from core.report.digest import file_digests, model_digest
from tests.api.parts import model_folder, problem, safetensors


def test_a_folder_is_registered_once_with_its_digest(client: TestClient, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "models")
    response = client.post("/models", json={"path": str(folder)})
    assert response.status_code == 201
    model = response.json()
    assert response.headers["location"] == f"/models/{model['id']}"
    assert (model["name"], model["path"], model["architecture"]) == ("tiny", str(folder.resolve()), "LlamaForCausalLM")
    assert model["digest"] == model_digest(file_digests(folder))
    weights = (folder / "model.safetensors").read_bytes()
    assert model["files"]["model.safetensors"] == {"sha256": hashlib.sha256(weights).hexdigest(), "size": len(weights)}
    again = client.post("/models", json={"path": str(folder / "..") + "/tiny", "name": "another"})
    assert (again.status_code, again.json()) == (200, model)
    (folder / "model.safetensors").write_bytes(safetensors(65))
    changed = client.post("/models", json={"path": str(folder), "name": "retrained"})
    assert changed.status_code == 201
    assert changed.json()["name"] == "retrained"
    assert [m["id"] for m in client.get("/models").json()["data"]] == [changed.json()["id"], model["id"]]
    assert client.get(f"/models/{model['id']}").json() == {**model, "children": []}
    problem(client.get("/models/mdl_00000000"), 404, "not_found")


def test_a_link_below_the_roots_may_lead_below_the_roots_only(client: TestClient, tmp_path: Path) -> None:
    inside, outside = model_folder(tmp_path / "models"), model_folder(tmp_path, "outside")
    (tmp_path / "models" / "alias").symlink_to(inside)
    (tmp_path / "models" / "way-out").symlink_to(outside)
    (tmp_path / "models" / "loop").symlink_to(tmp_path / "models" / "loop")
    assert client.post("/models", json={"path": f"{tmp_path}/models/alias"}).json()["path"] == str(inside.resolve())
    for path in (
        f"{tmp_path}/models/way-out",
        str(outside),
        f"{inside}/../../outside",
        "models/tiny",
        "/nowhere/at/all",
    ):
        body = problem(client.post("/models", json={"path": path}), 422, "invalid_model")
        assert "not open to requests" in body["detail"]
        assert body["param"] == "path"
    (tmp_path / "models" / "link").symlink_to(f"{tmp_path}/models/\udcff")
    for path in (f"{tmp_path}/models/{'x' * 300}", f"{tmp_path}/models/link"):
        assert problem(client.post("/models", json={"path": path}), 422, "invalid_model")["param"] == "path"
    for path in (f"{tmp_path}/models/nothing", f"{inside}/config.json", f"{tmp_path}/models/loop"):
        problem(client.post("/models", json={"path": path}), 422, "invalid_model")


def write(name: str, content: bytes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def link(name: str, target: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def named(name: str) -> Callable[[Path], object]:
    return write("config.json", json.dumps({"architectures": [name]}).encode())


CONFIG = b'{"architectures": ["LlamaForCausalLM"]'
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to a secret": (link("tokenizer.json", "/etc/passwd"), "symbolic link that leads out"),
    "the configuration is a link": (link("config.json", "/etc/passwd"), "symbolic link that leads out"),
    "a folder behind a link": (link("more", "/etc"), "symbolic link that leads out"),
    "a link within": (link("more.json", "config.json"), "symbolic link that leads within"),
    "pickled weights": (write("pytorch_model.bin", b"x"), "pytorch_model.bin is in a format that is refused"),
    "pickled weights, in capitals": (write("MODEL.PT", b"x"), "MODEL.PT is in a format that is refused"),
    "a pickle deep down": (write("deep/er.pickle", b"x"), "deep/er.pickle is in a format that is refused"),
    "a pickle by another name": (write("model.safetensors", b"\x80\x04\x95" + b"x" * 99), "not a safetensors file"),
    "an empty file": (write("model.safetensors", b""), "not a safetensors file"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors file"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "configuration is no object": (write("config.json", b"[]"), "config.json is not a JSON object"),
    "configuration is deep": (write("config.json", b"[" * 100_000), "config.json is not a JSON object"),
    "no architecture": (write("config.json", b"{}"), "architectures"),
    "half a surrogate pair as architecture": (named("\ud800"), "class names"),
    "NUL in the architecture": (named("Llama\0"), "class names"),
    "a long architecture": (named("L" * 201), "class names"),
    "a name that is not UTF-8": (lambda folder: Path(f"{folder}/\udcff.json").touch(), "is not UTF-8"),
    "a folder's name that is not UTF-8": (lambda folder: Path(f"{folder}/\udcff").mkdir(), "is not UTF-8"),
    "a pipe": (lambda folder: os.mkfifo(folder / "tokenizer.json"), "neither a file nor a folder"),
    "a pipe for a configuration": (lambda folder: os.mkfifo(folder / "tokenizer_config.json"), "neither a file"),
    "code of its own": (write("config.json", CONFIG + b', "auto_map": {"AutoModel": "m.M"}}'), "auto_map"),
    "a tokenizer's own code": (
        write("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["t.T", null]}}'),
        "auto_map",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_could_do_harm_is_refused_with_the_reason(client: TestClient, tmp_path: Path, name: str) -> None:
    change, reason = REFUSED[name]
    folder = model_folder(tmp_path / "models")
    change(folder)
    body = problem(client.post("/models", json={"path": str(folder)}), 422, "invalid_model")
    assert reason in body["detail"]
    assert "root:" not in json.dumps(body)
    assert client.get("/models").json()["data"] == []
