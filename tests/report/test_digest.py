import hashlib
import os
from pathlib import Path

import pytest

from core.errors import ModelError
from core.report.digest import file_digests, ignored_in, model_digest

FILES = {
    "Z": b"Z",
    "a/b": b"one",
    "a-b": b"two",
    "a.txt": b"three",
    "empty": b"",
    "model.safetensors": b"weights",
    "sub/.git/HEAD": b"kept",
    "sub/.gitignore": b"kept",
}
GIT = {".git/HEAD": b"x", ".gitignore": b"x", ".gitattributes": b"x", ".github/f": b"x"}


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_digest_is_that_of_model_signing(tmp_path: Path) -> None:
    digests = file_digests(fill(tmp_path, FILES | GIT))
    # Path components order the files: a/b stands before a-b, though "/" is the greater character.
    assert list(digests) == list(FILES)
    digest = model_digest(digests)
    assert (
        digest == hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in FILES.values())).hexdigest()
    )
    # The subject that model-signing 1.1.1 gives this very folder.
    assert digest == "00b2b6f907deefffdd55af9975899c59e9bd91cc7896cac63d170374df9e11f4"


def test_order_of_the_mapping_does_not_matter(tmp_path: Path) -> None:
    digests = file_digests(fill(tmp_path, FILES))
    assert model_digest(dict(reversed(digests.items()))) == model_digest(digests)


def test_only_gits_own_files_at_the_top_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, FILES)
    digest = model_digest(file_digests(tmp_path))
    assert ignored_in(tmp_path) == []
    fill(tmp_path, GIT)
    assert model_digest(file_digests(tmp_path)) == digest
    assert ignored_in(tmp_path) == [".git", ".gitattributes", ".github", ".gitignore"]
    fill(tmp_path, {".gitmodules": b""})
    assert model_digest(file_digests(tmp_path)) != digest


def test_folder_may_be_reached_through_a_link(tmp_path: Path) -> None:
    folder = fill(tmp_path / "real", FILES)
    (tmp_path / "link").symlink_to(folder)
    assert file_digests(tmp_path / "link") == file_digests(folder)


@pytest.mark.parametrize("target", ["weights", "folder", "nowhere"])
def test_links_inside_are_refused(tmp_path: Path, target: str) -> None:
    model = fill(tmp_path / "model", FILES)
    fill(tmp_path, {"weights": b"elsewhere", "folder/x": b""})
    (model / "sub" / "link").symlink_to(tmp_path / target)
    with pytest.raises(ModelError, match="sub/link is a symbolic link"):
        file_digests(model)


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere is not a folder"):
        file_digests(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="holds no file"):
        file_digests(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="pipe is neither a file nor a folder"):
        file_digests(tmp_path)


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="other systems refuse to create such a name")
def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_bytes(b"")
    with pytest.raises(ModelError, match="is not UTF-8") as caught:
        file_digests(tmp_path)
    caught.value.message.encode()
