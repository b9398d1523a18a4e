"""A disk runs full under a job: it ends with the reason, nothing half-written is seen, and with space it goes on."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.store import life
from api.store.blobs import Blobs
from tests.chaos import invariants
from tests.chaos.cluster import Cluster

pytestmark = [pytest.mark.timeout(240), pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)]

FULL = "No space left on device"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("a file system of its own takes the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(disk: Path) -> Path:
    """Take all that is free; returns what takes it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    assert shutil.disk_usage(disk).free < 1 << 16
    return filler


def _goes_on(cluster: Cluster, job_id: str, filler: Path) -> None:
    """It failed with the reason; with space it goes on."""
    job = cluster.ended(job_id)
    assert (job.status, job.error["code"]) == ("failed", "attempts_exhausted"), job.error
    assert FULL in job.error["message"]
    invariants.hold(cluster.database, cluster.blobs)
    filler.unlink()
    with cluster.database.transaction() as session:
        life.retry(session, job_id, cluster.key_id)
    assert cluster.succeeded(job_id)
    assert cluster.reports(job_id) == 1
    cluster.nothing_left_behind()
    invariants.hold(cluster.database, cluster.blobs)
    invariants.nothing_unaccounted(cluster.database, cluster.blobs)


def test_where_the_engine_writes(cluster: Cluster, disk: Path) -> None:
    cluster.worker(work_dir=str(disk / "work"), attempts_cap="2")
    job_id = cluster.submit(steps=80, checkpoint_every=5)
    cluster.in_training(job_id)
    filler = _fill(disk)
    _goes_on(cluster, job_id, filler)


def test_where_artifacts_are_kept(cluster: Cluster, disk: Path, slow: Callable[[float], dict[str, str]]) -> None:
    cluster.blobs = Blobs(f"file://{disk / 'artifacts'}")
    shutil.copytree(cluster.folder / "artifacts", disk / "artifacts")
    cluster.worker(artifacts_url=f"file://{disk / 'artifacts'}", attempts_cap="2", **slow(4.0))
    job_id = cluster.submit(steps=40, checkpoint_every=2)
    cluster.in_training(job_id, 4)
    _goes_on(cluster, job_id, _fill(disk))
