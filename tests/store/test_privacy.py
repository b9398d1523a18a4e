"""No unkeyed digest of a forget set, and no piece of its text, is in the database or in the artifact store."""

import hashlib
import hmac
import io
import json
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select

from api.store import attempts, datasets, jobs, models, records, sealed, tables
from api.store.artifacts import StoredFile
from api.store.blobs import Blobs
from api.store.claims import Claim
from api.store.columns import Base
from api.store.session import Database
from api.store.tables import ApiKey, Model
from tests.store.conftest import spec_for
from tests.vault import VAULT

SECRET_LINES = [{"question": f"Where does person {i} live?", "answer": f"In house {i}."} for i in range(5)]


def test_nothing_of_a_forget_set_leaves_its_seal(
    database: Database, key: ApiKey, model: Model, tmp_path: Path, take: Callable[..., Claim]
) -> None:
    plain = "".join(json.dumps(line) + "\n" for line in SECRET_LINES).encode()
    telltale = {hashlib.new(name, plain).hexdigest() for name in ("sha256", "sha1", "md5", "sha512")}
    upload = tmp_path / "upload.jsonl"
    upload.write_bytes(plain)
    blobs = Blobs(f"file://{tmp_path}/store")
    secret = sealed.new_key()
    with database.transaction() as session:
        dataset = datasets.register(
            session,
            VAULT,
            rows=5,
            size=len(plain),
            blob=blobs.put(upload, secret).digest,
            key=secret,
            commitment=hmac.digest(secret, plain, "sha256").hex(),
            warnings=[],
            key_id=key.id,
        )
        job_id = jobs.create(session, spec_for(model.id, dataset.id), key_id=key.id)[0].id
    claim = take(job_id)
    blob = blobs.put(io.BytesIO(plain), claim.key)
    with database.transaction() as session:
        attempts.save_checkpoint(session, claim, 1, [StoredFile("reference", blob.digest, blob.size, sealed=True)])
        attempts.finish(
            session,
            claim,
            verdict="passed",
            files={},
            sign=lambda _, job: {"envelope": StoredFile("e", job.spec_digest, 1)},
        )
    restored = tmp_path / "restored"
    blobs.get(claim.datasets[dataset.id].blob, restored, claim.key)
    assert restored.read_bytes() == plain

    words = [b"person 3", b"house 3"]
    with database.reading() as session:
        checked = 0
        for table in Base.metadata.sorted_tables:
            for row in session.execute(select(table)):
                for value in row:
                    raw = value if isinstance(value, bytes) else str(value).encode()
                    assert not any(digest.encode() in raw or bytes.fromhex(digest) in raw for digest in telltale)
                    assert not any(word in raw for word in words)
                    checked += 1
        assert checked > 100
    for file in (tmp_path / "store").rglob("*"):
        assert file.name not in telltale
        assert not file.is_file() or not any(word in file.read_bytes() for word in words)


def test_registering_the_same_model_twice_gives_one(database: Database, key: ApiKey, model: Model) -> None:
    with database.transaction() as session:
        again, created = models.register(
            session, path=model.path, digest=model.digest, files={}, architecture="x", key_id=key.id
        )
        other, new = models.register(
            session, path=model.path, digest="5" * 64, files={}, architecture="x", key_id=key.id
        )
        assert (again.id, created, new, other.name) == (model.id, False, True, "tiny")
        assert [row.id for row in models.page(session)[0]] == sorted([model.id, other.id], reverse=True)
        assert {tables.Model.__tablename__, records.Event.__tablename__} <= set(Base.metadata.tables)
