"""What a worker must be told, read from LETHE_* variables; the store's settings are among them."""

import sys
from pathlib import Path

from pydantic import Field

from api.store.settings import JsonList, StoreSettings


class WorkerSettings(StoreSettings):
    """Settings of one worker process. Times are in seconds."""

    work_dir: Path = Field(description="folder for the running attempts; plaintext lies here only while one runs")
    signing_key_file: Path = Field(description="PEM private key (ECDSA P-256) that signs reports; `lethe up` makes it")
    lease_seconds: float = Field(30.0, ge=1, description="how long a job stays this worker's without a renewal")
    devices: JsonList[str] = Field(
        default_factory=list,
        description='CUDA devices of each job at once, as a JSON list such as ["0,1", "2,3"]; empty: all of every job',
    )
    engine_python: Path = Field(
        Path(sys.executable),
        description="Python that runs the engine, where torch lies in another environment than the worker",
    )
    processes: int = Field(1, ge=1, le=1024, description="processes of a job whose spec names no number")
    batch_most: int = Field(
        16, ge=1, le=256, description="requests on one model that may share a run (`batch`); 1: none"
    )
    poll_seconds: float = Field(30.0, gt=0, description="how often SQL is looked at for lost leases and lost messages")
    retention_days: float = Field(
        30.0, ge=0, le=36_500, description="days after a job last ran on it until a data set's key is destroyed"
    )
    attempts_cap: int = Field(3, ge=1, description="attempts that may die before a job fails")
    grace_seconds: float = Field(6.0, gt=0, description="how long a stopped engine may take to leave a checkpoint")
    orphan_seconds: float = Field(
        86400.0, ge=3600, description="age from which a file of the artifact store goes if no row refers to it"
    )
    recheck_most: int = Field(
        20, ge=0, description="earlier jobs on a model's line, the newest, whose forget sets a job measures again"
    )
    metrics_port: int = Field(0, ge=0, le=65_535, description="port of Prometheus' metrics at /metrics; 0: none")
    metrics_host: str = Field("127.0.0.1", description="address that metrics_port is listened on at")
