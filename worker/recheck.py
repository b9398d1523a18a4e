"""What a job is given of the jobs before it on its model's line, so that it sees whether what they removed comes back.

Forget sets lie in the attempt's folder like its own. A set keeps its own deadline: what is destroyed is not given.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from api.store.blobs import Blobs
from api.store.errors import BlobDamaged, BlobMissing, InvalidSetting
from api.store.lineage import Removed
from api.store.vault import Vault


def listed(folder: Path, found: Sequence[Removed], count: int, blobs: Blobs, vault: Vault) -> Path:
    """Put reports and forget sets of earlier jobs into the attempt's folder; returns the file that lists them.

    There are `count` such jobs in all. To be called after `fill`.
    """
    (folder / "earlier").mkdir()
    jobs = [_given(folder, removed, blobs, vault) for removed in found]
    file = folder / "earlier.json"
    file.write_text(json.dumps({"jobs": jobs, "of": count}))
    return file


def _given(folder: Path, removed: Removed, blobs: Blobs, vault: Vault) -> dict[str, Any]:
    report = folder / "earlier" / f"{removed.job_id}.json"
    if removed.report is not None:
        try:
            blobs.get(removed.report, report)
        except (BlobMissing, BlobDamaged, OSError):
            report.unlink(missing_ok=True)
    records, absent = _records(folder, removed, blobs, vault)
    return {
        "job": removed.job_id,
        "report": str(report),
        "dataset": removed.forget.id if removed.forget else None,
        "records": str(records) if records else None,
        "absent": absent,
    }


def _records(folder: Path, removed: Removed, blobs: Blobs, vault: Vault) -> tuple[Path | None, str | None]:
    """The file of the records, or the reason why there is none."""
    forget = removed.forget
    if forget is None:
        return None, "its forget set was no upload, so nothing says that it is still the same"
    if forget.destroyed_at is not None:
        return None, f"its data was destroyed on {forget.destroyed_at:%Y-%m-%d}"
    # Where it is a set of this job too, it is there already.
    file = folder / "data" / f"{forget.id}.jsonl"
    try:
        if not file.exists():
            blobs.get(forget.blob, file, vault.unwrap(forget.key, forget.id))
    except (BlobMissing, BlobDamaged, InvalidSetting) as error:
        return None, f"its data cannot be had any more ({error.code})"
    except OSError as error:
        # A full disk, say: what comes on top of the job's own work is not worth the job.
        return None, f"its data could not be written out ({os.strerror(error.errno) if error.errno else 'no reason'})"
    return file, None
