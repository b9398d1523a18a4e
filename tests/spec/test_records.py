import pytest

from core.errors import DataError
from core.spec.records import record_from_line


def test_a_number_too_long_to_read_is_a_reason_not_a_traceback() -> None:
    with pytest.raises(DataError, match="a number is too long"):
        record_from_line('{"text": ' + "1" * 5000 + "}")
