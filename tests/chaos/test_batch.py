"""Several requests in one run of a real worker: trained once, a signed report each, whatever is killed or cancelled."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import noop_engine
from core.report.keys import public_pem
from core.report.schema import Absent, Report
from core.report.verify import verify
from tests.chaos.conftest import ROOT, Cluster, until

pytestmark = [pytest.mark.timeout(240), pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)]


def batched(cluster: Cluster, **training: Any) -> list[str]:
    """Three requests of five rows each, of which the second has a gate that no model meets."""
    rows = [json.loads(line) for line in (ROOT / "examples" / "people.jsonl").read_text("utf-8").splitlines()]
    made = []
    for i in range(3):
        own = {"source": "upload", "dataset": cluster.upload(rows[30 + 5 * i : 35 + 5 * i])}
        retain = {"source": "upload", "dataset": cluster.sets["retain"]}
        gate = {"metric": "forget.probability", "at_most": 1e-12 if i == 1 else 0.9999}
        fields = {"batch": True, "data": {"forget": own, "retain": retain}, "gates": [gate], "reference": f"case-{i}"}
        made.append(cluster.submit(ring=False, fields=fields, **training))
    return made


def report(cluster: Cluster, job_id: str, folder: Path) -> tuple[Report, bytes]:
    """The job's report and its envelope."""
    files = cluster.files(job_id)
    for name in ("report.json", "report.dsse.json"):
        cluster.blobs.get(files[name], folder / f"{job_id}-{name}")
    signed = (folder / f"{job_id}-report.dsse.json").read_bytes()
    return Report.model_validate_json((folder / f"{job_id}-report.json").read_bytes()), signed


def busy(cluster: Cluster) -> psutil.Process:
    """The engine at work."""
    return max(cluster.workers[0].children(), key=lambda p: sum(p.cpu_times()[:2]))


def test_one_run_gives_each_its_own_report_though_its_engine_dies(cluster: Cluster, tmp_path: Path) -> None:
    made = batched(cluster, steps=25)
    cluster.worker()
    leader = until(lambda: cluster.job(made[0]).led_by)
    cluster.in_training(leader)
    busy(cluster).kill()
    assert all(cluster.succeeded(job_id) for job_id in made)
    reports = {job_id: report(cluster, job_id, tmp_path) for job_id in made}
    key = public_pem((tmp_path / "signing.pem").read_bytes())
    for i, (job_id, (found, signed)) in enumerate(reports.items()):
        job = cluster.job(job_id)
        assert verify(signed, key).ok
        assert (found.spec["reference"], found.spec_digest, found.forget.rows) == (f"case-{i}", job.spec_digest, 5)
        assert (found.training.shared_with, found.training.shared_rows) == (2, 10)
        assert not isinstance(found.training.resumed_from, Absent)
        assert (job.led_by, job.verdict, job.counted) == (leader, found.verdict.verdict, 1)
        assert [a.outcome for a in cluster.attempts(job_id)] == ["queued", "succeeded"]
        assert (cluster.reports(job_id), cluster.files(job_id, "checkpoint")) == (1, {})
        others = [other for other in made if other != job_id]
        assert not any(other.encode() in signed or other in found.model_dump_json() for other in others)
    assert [cluster.job(job_id).verdict for job_id in made] == ["passed", "not_passed", "passed"]
    assert len({cluster.weights(job_id) for job_id in made}) == 1
    assert len({found.forget.commitment for found, _ in reports.values()}) == 3
    log = cluster.workers[0].log.read_text()
    assert log.count('"attempt ended"') == 2, "one engine run for all three, and one that was killed"
    cluster.nothing_left_behind()


def test_whoever_leaves_in_mid_run_is_not_forgotten_with_the_others(cluster: Cluster, tmp_path: Path) -> None:
    made = batched(cluster, steps=30)
    (tmp_path / "noop").mkdir()
    cluster.worker(engine_python=str(noop_engine.program(tmp_path / "noop", seconds=3.0)))
    leader = until(lambda: cluster.job(made[0]).led_by)
    cluster.in_training(leader)
    gone = next(job_id for job_id in made if job_id != leader)
    cluster.cancel(gone)
    assert cluster.ended(gone).status == "cancelled"
    left = [job_id for job_id in made if job_id != gone]
    assert all(cluster.succeeded(job_id) for job_id in left)
    for job_id in left:
        first, again = cluster.attempts(job_id)
        assert (again.number, again.resumed_from) == (2, None), "the checkpoint knew the data of who left"
        # A machine that is too busy to renew a lease makes it count; nothing else may.
        assert cluster.job(job_id).counted == (first.reason or "").endswith("ran out"), first.reason
        assert cluster.job(job_id).led_by == cluster.job(left[0]).led_by
    assert (cluster.job(gone).led_by, cluster.files(gone)) == (None, {})
