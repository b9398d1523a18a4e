"""Proofs that a record is in an uploaded set, for whoever holds the set's commitment key."""

from api.store.blobs import Blobs
from api.store.errors import Conflict, DataDestroyed, NotFound
from api.store.tables import Dataset
from api.store.vault import Vault
from core.report import merkle
from core.report.merkle import Proof


def prove(blobs: Blobs, vault: Vault, dataset: Dataset, leaf: bytes) -> Proof:
    """The way from `leaf` to the set's commitment.

    Raises NotFound where no record has this leaf, DataDestroyed, Conflict for a set of the first version of Lethe,
    BlobMissing and BlobDamaged.
    """
    if dataset.destroyed_at is not None:
        raise DataDestroyed(f"Data set {dataset.id} was destroyed, and the key of its commitment with it.")
    if dataset.leaves is None:
        raise Conflict(f"Data set {dataset.id} was uploaded to a Lethe whose commitments proved nothing of one record.")
    leaves = blobs.read(dataset.leaves, vault.unwrap(dataset.key, dataset.id))
    index = merkle.find(leaves, leaf)
    if index is None:
        raise NotFound(
            f"No record of data set {dataset.id} has this leaf: another record, or another key.", param="leaf"
        )
    return merkle.prove(leaves, index)
