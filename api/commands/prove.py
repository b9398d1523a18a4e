"""`lethe prove`: show that a record was in the set that a report is about, without showing anybody the set."""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from api.commands.asked import HERE, AsJson, Url, connected, unreadable
from core.errors import DataError, LetheError, Problem, SpecError
from core.report import merkle
from core.report.merkle import Proof
from core.spec.records import row_from_line

app = typer.Typer()

Api = Annotated[str, typer.Option("--api-key", envvar="LETHE_API_KEY", help="with --dataset", show_default=False)]


@app.command()
def prove(
    key: Annotated[str, typer.Option(help="the commitment key of the upload, or a file that holds it")],
    record: Annotated[Path | None, typer.Option(help="a JSON file with the record")] = None,
    records: Annotated[Path | None, typer.Option(help="the uploaded file, to make the proof from it offline")] = None,
    line: Annotated[int | None, typer.Option(min=1, help="the record's line in --records")] = None,
    dataset: Annotated[str | None, typer.Option(help="let a service make the proof: the data set's id")] = None,
    check: Annotated[Path | None, typer.Option(help="a proof to check, with --record and --report")] = None,
    report: Annotated[Path | None, typer.Option(help="report.json or report.dsse.json")] = None,
    signed_by: Annotated[Path | None, typer.Option(help="public key (PEM): check the report's signature too")] = None,
    url: Url = HERE,
    api_key: Api = "",
    as_json: AsJson = False,
) -> NoReturn:
    """Print the proof that a record is in a set, from the uploaded file (--records) or from a service (--dataset); or
    check one (--check). Exit 0: proven; 1: not; 2: something cannot be read."""
    secret = _key(key)
    given = None if record is None else merkle.canonical(_json(record))
    if check is not None:
        if given is None or report is None:
            raise _lacking("--check needs --record and --report.")
        said = _checked(_proof(check), merkle.leaf(secret, given), report, signed_by)
        print(json.dumps(said, indent=2) if as_json else said["message"])
        sys.exit(0 if said["proven"] else 1)
    if records is not None:
        proof = _from_file(secret, records, line, given)
    elif dataset is not None and given is not None:
        with connected(url, api_key) as client:
            answer = client.get(f"/datasets/{dataset}/proof", leaf=merkle.leaf(secret, given).hex())
        proof = Proof.model_validate(answer)
        if not merkle.holds(proof, merkle.leaf(secret, given)):
            raise NotProven("The service's proof does not hold for this record and key.")
    else:
        raise _lacking("Give --records with --line or --record, or --dataset with --record.")
    print(proof.model_dump_json(indent=2))
    sys.exit(0)


class NotProven(LetheError):
    """The record is not in the set, or the key is not the set's."""

    code = "not_proven"
    exit_code = 1


def _from_file(key: bytes, records: Path, line: int | None, given: bytes | None) -> Proof:
    if line is None and given is None:
        raise _lacking("--records needs --line or --record.")
    wanted = None if given is None else merkle.leaf(key, given)
    leaves, index, number = bytearray(), None, 0
    try:
        with records.open("rb") as lines:
            for number, text in _filled(lines):
                leaf = merkle.leaf(key, merkle.canonical(row_from_line(text)))
                if index is None and (number == line or (line is None and leaf == wanted)):
                    index = len(leaves) // merkle.LEAF
                leaves += leaf
    except OSError as error:
        raise unreadable(records, error) from None
    except DataError as error:
        raise SpecError([Problem("", None, f"{records}, line {number}: {error.message}.")]) from None
    if index is None:
        if line is None:
            raise NotProven(f"{records} does not hold the record.")
        raise NotProven(f"Line {line} of {records} holds no record. Its last is in line {number}.")
    return merkle.prove(bytes(leaves), index)


def _filled(lines: Iterable[bytes]) -> Iterable[tuple[int, bytes]]:
    return ((number, text) for number, text in enumerate(lines, start=1) if text.strip())


def _checked(proof: Proof, leaf: bytes, report: Path, signed_by: Path | None) -> dict[str, Any]:
    from core.report.commitments import in_report

    if not merkle.holds(proof, leaf):
        return {"proven": False, "message": "The proof does not hold: for another record, another key, or altered."}
    name, message = in_report(proof, report, signed_by)
    return {"proven": name is not None, "set": name, "message": message}


def _key(given: str) -> bytes:
    text = given
    if not _KEY.fullmatch(given):
        try:
            text = Path(given).read_text().strip()
        except OSError as error:
            if not _MISTYPED.fullmatch(given):
                raise unreadable(Path(given), error) from None
        except ValueError:
            text = ""
    if not _KEY.fullmatch(text):
        # Not repeated: it may be the key with a letter too few.
        raise _lacking("--key is 64 hexadecimal digits, as the upload's answer gave them, or a file that holds them.")
    return bytes.fromhex(text)


# A file may have a name of 64 letters, or a path of 64 characters.
_KEY = re.compile(r"[0-9a-fA-F]{64}")
# What could be a key with a letter too few or a wrong one; an error repeats only what could not.
_MISTYPED = re.compile(r"[0-9a-fA-F]*|\w{32,}")


def _json(file: Path) -> Any:
    try:
        return row_from_line(file.read_bytes().strip())
    except OSError as error:
        raise unreadable(file, error) from None
    except DataError as error:
        raise SpecError([Problem("", None, f"{file}: {error.message}.")]) from None


def _proof(file: Path) -> Proof:
    try:
        return Proof.model_validate(_json(file))
    except ValueError:
        raise SpecError([Problem("", None, f"{file} is no proof as `lethe prove` prints it.")]) from None


def _lacking(said: str) -> SpecError:
    return SpecError([Problem("", None, said)])
