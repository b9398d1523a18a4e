"""A random model in a folder, and a Python that forks: what the engine's tests start from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.model import save
from core.scratch import train_tokenizer
from tests import models, tiny
from tests.zygote import Zygote


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors are not worth a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Where the engine's processes are forked from."""
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer of the people's rows."""
    rows = models.people(6)
    return train_tokenizer([text for row in rows for text in (row["question"], row["answer"])], 600)


@pytest.fixture(scope="session")
def random_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that knows nothing: quick to run, and as good as any for how a run goes."""
    folder = tmp_path_factory.mktemp("random")
    save(tiny.llama(vocab=len(tokenizer)), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def unlearnt(random_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> models.Reciter:
    """The random model with a forget set of 6 rows and a retain set of 9."""
    folder = tmp_path_factory.mktemp("sets")
    forget = models.write_lines(folder / "forget.jsonl", models.people(2)[:6])
    return models.Reciter(random_folder, forget, models.write_lines(folder / "retain.jsonl", models.people(2, 2)[:9]))
