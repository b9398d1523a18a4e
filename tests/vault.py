"""The master key of every deployment that tests make, and the vault under it."""

from api.store.vault import Vault

MASTER = "the master key of the tests' own deployment"
VAULT = Vault(MASTER.encode())
