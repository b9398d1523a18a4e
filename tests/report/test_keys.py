import hashlib
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from core.report.keys import EvidenceError, key_id, load_or_create_key, new_key, private_key, public_key, public_pem


def test_a_new_key_is_kept_private_with_its_public_half_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.pem"
    key = load_or_create_key(path)
    assert path.read_bytes() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    beside = tmp_path / "keys" / "signing.pub.pem"
    assert beside.read_bytes() == public_pem(key)
    assert sorted(path.parent.iterdir()) == [path, beside]
    beside.write_bytes(b"of an older key")
    assert load_or_create_key(path) == key
    assert beside.read_bytes() == public_pem(key)


def test_processes_that_start_at_once_end_with_the_same_keys(tmp_path: Path) -> None:
    go = tmp_path / "go"
    program = f"""
import pathlib, sys
from core.report.keys import load_or_create_key
print("ready", flush=True)
while not pathlib.Path({str(go)!r}).exists():
    pass
for i in range(40):
    sys.stdout.write(load_or_create_key(pathlib.Path({str(tmp_path)!r}, "keys", f"{{i}}.pem")).hex() + "\\n")
"""
    started = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(4)]
    for process in started:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
    time.sleep(0.05)
    go.touch()
    answers = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * 4
    assert len(set(answers)) == 1
    assert len(set(answers[0].splitlines())) == 40
    assert len(list((tmp_path / "keys").iterdir())) == 80


def test_key_id_is_the_digest_of_the_public_keys_der() -> None:
    key = private_key(new_key()).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key_id(key) == hashlib.sha256(der).hexdigest()


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00 not a key",
        new_key()[:80],
        public_pem(new_key()),
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(rsa.generate_private_key(65537, 2048)),
        pem(ec.generate_private_key(ec.SECP256R1()), b"password"),
    ],
    ids=["empty", "noise", "cut", "public", "P-384", "RSA", "encrypted"],
)
def test_other_keys_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "signing.pem"
    path.write_bytes(content)
    with pytest.raises(EvidenceError, match="private key"):
        load_or_create_key(path)
    assert path.read_bytes() == content
    if b"PUBLIC" not in content:
        with pytest.raises(EvidenceError, match="public key"):
            public_key(content)


def test_a_key_that_cannot_be_read_is_an_error_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="directory"):
        load_or_create_key(tmp_path)
