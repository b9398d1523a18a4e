"""One Idempotency-Key makes one job, however many ask at once: a real API process, real connections."""

from collections import Counter
from pathlib import Path

from sqlalchemy import func, select

from api.settings import Settings
from api.store.session import Database
from api.store.tables import Job
from tests.api.parts import JSONL, RECORDS, ApiProcess, model_folder, problem, request_for
from tests.parallel import at_once


def test_a_hundred_requests_at_once_make_one_job(
    settings: Settings, database: Database, key: str, tmp_path: Path
) -> None:
    with ApiProcess(settings, tmp_path) as api, api.client(key) as client:
        dataset = client.post("/datasets", content=RECORDS, headers=JSONL).json()["id"]
        model = client.post("/models", json={"path": str(model_folder(tmp_path / "models"))}).json()["id"]
        body, header = request_for(model, dataset), {"Idempotency-Key": "at-once"}

        def send(_: int) -> tuple[int, str]:
            with api.client(key) as own:
                answer = own.post("/jobs", json=body, headers=header, timeout=60)
            return answer.status_code, answer.json()["id"]

        answers = at_once(100, send)
        assert Counter(status for status, _ in answers) == {201: 1, 200: 99}
        assert len({job for _, job in answers}) == 1
        refused = client.post("/jobs", json={**body, "seed": 1}, headers=header)
        assert problem(refused, 422, "idempotency_mismatch")["param"] == "Idempotency-Key"
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1
