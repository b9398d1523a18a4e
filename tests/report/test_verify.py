import base64
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

from core.errors import LetheError, ModelError
from core.report.keys import EvidenceError, key_id, new_key, private_key, public_key, public_pem
from core.report.schema import Report
from core.report.sign import canonical, dsse_key, sign, statement
from core.report.verify import verify, verify_files

Place = Callable[..., dict[str, Path]]
WHITESPACE = b" \t\r\n"


def signed(payload: bytes, key: bytes, payload_type: str = "application/vnd.in-toto+json") -> bytes:
    envelope = Envelope(payload, payload_type, {})
    private = private_key(key)
    envelope.sign(CryptoSigner(private, dsse_key(private.public_key())))
    return json.dumps(envelope.to_dict()).encode()


def verifies(*arguments: Any, **named: Any) -> bool:
    """False too where the input is refused as unreadable; any other exception is a fault of ours."""
    try:
        return verify(*arguments, **named).ok
    except (EvidenceError, ModelError):
        return False


def flips(content: bytes, times: int) -> Iterator[tuple[int, bytes]]:
    """Every byte replaced by another one, `times` over. Always the same ones."""
    dice = random.Random(7)
    for i in range(len(content)):
        for other in dice.sample(range(1, 256), times):
            yield i, content[:i] + bytes([content[i] ^ other]) + content[i + 1 :]


def test_everything_matches(place: Place, model: Path) -> None:
    files = place()
    for name in ("report.json", "report.dsse.json"):
        result = verify_files(files[name], model, files["signing.pub.pem"])
        assert (result.ok, result.exit_code, result.failures, result.unchecked) == (True, 0, [], [])
        assert sum(line.startswith("model: ") for line in result.checked) == 4  # three files and the whole
        assert ("plain report: says what was signed" in result.checked) == (name == "report.json")


def test_without_a_model_it_says_that_no_weights_were_compared(place: Place) -> None:
    files = place()
    result = verify_files(files["report.json"], None, files["signing.pub.pem"])
    assert result.exit_code == 0
    assert result.unchecked == ["model: no folder was given, so no weights were compared with their digests"]


def test_no_byte_of_the_envelope_can_be_altered(envelope: bytes, public: bytes) -> None:
    assert verifies(envelope, public)
    for i, altered in flips(envelope, 8):
        # One space for another between JSON's own signs is the same envelope; the envelope's strings hold no spaces.
        harmless = envelope[i] in WHITESPACE and altered[i] in WHITESPACE
        assert verifies(altered, public) == harmless, (i, altered[max(0, i - 20) : i + 20])


def test_white_space_around_the_fields_is_harmless(envelope: bytes, public: bytes) -> None:
    assert verifies(json.dumps(json.loads(envelope), indent=7).encode(), public)


def test_no_byte_of_the_plain_report_can_be_altered(report: Report, envelope: bytes, public: bytes) -> None:
    plain = report.model_dump_json(indent=2).encode()

    def meaning(content: bytes) -> Any:
        try:
            # Numbers by their text: two of them can be different and still the same float.
            read = lambda text: ("number", text.lower())  # noqa: E731
            return json.loads(content, parse_float=read, parse_int=read, parse_constant=read)
        except ValueError:
            return None

    assert verifies(envelope, public, report=plain)
    for i, altered in flips(plain, 2):
        same = meaning(altered) == meaning(plain)
        assert not same or altered[i] in b" \t\r\nEe"
        assert verifies(envelope, public, report=altered) == same, (i, altered[max(0, i - 20) : i + 20])


def test_the_last_digit_of_a_number_counts_even_where_the_float_is_the_same(
    report: Report, envelope: bytes, public: bytes
) -> None:
    plain = report.model_dump_json().encode()
    digit = plain.replace(b"0.30000000000000004", b"0.30000000000000005")
    assert json.loads(digit) == json.loads(plain)
    assert digit != plain
    assert verify(envelope, public, report=digit).failures == [
        "plain report: after.forget.probability.value is 0.30000000000000005, signed was 0.30000000000000004",
        "plain report: verdict.gates.0.observed is 0.30000000000000005, signed was 0.30000000000000004",
    ]


def edited(report: Report, edit: Callable[[dict[str, Any]], object]) -> bytes:
    value = json.loads(report.model_dump_json())
    edit(value)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("edit", "failure"),
    [
        (lambda r: r["verdict"].update(verdict="passed"), "verdict.verdict is passed, signed was not_passed"),
        (lambda r: r.update(seed=1), "seed is 1, signed was 0"),
        (lambda r: r.update(seed=0.0), "seed is 0.0, signed was 0"),
        (lambda r: r.update(seed=False), "seed is False, signed was 0"),
        (lambda r: r["training"].update(final_loss=0.0), "training.final_loss is 0.0, signed was -0.0"),
        (lambda r: r["limitations"].pop(), "limitations has 0 entries, signed were 1"),
        (lambda r: r["after"].clear(), "after.forget.probability is missing"),
        (lambda r: r.update(note="certified"), "note was not signed"),
        (lambda r: r["before"].update({"\x1b[2J": 1}), r"before.'\x1b[2J' was not signed"),
        (lambda r: r.update(retain=[]), "retain is [], signed was {'absent': 'no retain set was given'}"),
        (lambda r: r.update(seed="\x1b[2J"), r"seed is '\x1b[2J', signed was 0"),
    ],
)
def test_an_edited_report_is_found_and_the_edit_named(
    report: Report, place: Place, edit: Callable[[dict[str, Any]], object], failure: str
) -> None:
    files = place(report__json=edited(report, edit))
    result = verify_files(files["report.json"], None, files["signing.pub.pem"])
    assert result.failures == [f"plain report: {failure}"]
    assert result.exit_code == 1


def test_a_report_that_says_a_thing_twice_is_refused(report: Report, envelope: bytes, public: bytes) -> None:
    twice = report.model_dump_json().encode().replace(b'{"version"', b'{"verdict":"passed","version"', 1)
    with pytest.raises(LetheError, match="'verdict' is given twice") as caught:
        verify(envelope, public, report=twice)
    assert caught.value.exit_code == 2


def test_a_long_list_of_differences_is_cut(report: Report, envelope: bytes, public: bytes) -> None:
    failures = verify(
        envelope, public, report=edited(report, lambda r: r.update({f"f{i}": 1 for i in range(99)}))
    ).failures
    assert len(failures) == 21
    assert failures[-1] == "plain report: 79 further differences"


def test_one_altered_byte_in_the_model_names_its_file(envelope: bytes, public: bytes, model: Path) -> None:
    dice = random.Random(3)
    for name in ("model.safetensors", "config.json", "tokenizer/vocab.txt"):
        content = (model / name).read_bytes()
        for i in {0, len(content) - 1, *(dice.randrange(len(content)) for _ in range(10))}:
            (model / name).write_bytes(content[:i] + bytes([content[i] ^ (1 << dice.randrange(8))]) + content[i + 1 :])
            result = verify(envelope, public, model=model)
            assert result.failures[0] == f"model: {name} was altered"
            assert len(result.failures) == 2
            assert "not as signed" in result.failures[1]
            assert result.exit_code == 1
        (model / name).write_bytes(content)
    assert verify(envelope, public, model=model).ok


def test_missing_extra_and_renamed_files_are_named(envelope: bytes, public: bytes, model: Path) -> None:
    # In its new place the file still stands between the same two neighbours: the model's digest alone is blind to that.
    (model / "model.safetensors").rename(model / "model2.safetensors")
    assert verify(envelope, public, model=model).failures == [
        "model: model.safetensors is missing",
        "model: model2.safetensors is extra, it was not there when the report was signed",
    ]
    (model / "model2.safetensors").unlink()
    (model / "pytorch\n.bin").write_bytes(b"")
    (model / ".gitattributes").write_bytes(b"")
    result = verify(envelope, public, model=model)
    assert result.failures[:2] == [
        "model: model.safetensors is missing",
        r"model: 'pytorch\n.bin' is extra, it was not there when the report was signed",
    ]
    assert result.unchecked == ["model: .gitattributes: git's own, no part of a model's digest"]


def test_another_key_has_not_signed(envelope: bytes, public: bytes) -> None:
    other = public_pem(new_key())
    result = verify(envelope, other)
    assert result.exit_code == 1
    own, wanted = key_id(public_key(public)), key_id(public_key(other))
    assert result.failures == [f"signature: the key {wanted} has not signed this; the envelope names {own}"]
    assert result.checked == []
    assert result.unchecked == ["the content: it proves nothing while the signature does not hold"]


def test_a_key_id_is_only_a_name(envelope: bytes, public: bytes) -> None:
    other = public_pem(new_key())
    claimed = envelope.replace(key_id(public_key(public)).encode(), key_id(public_key(other)).encode())
    assert "over this content" in verify(claimed, other).failures[0]


def test_a_second_signature_does_no_harm_and_is_said_not_to_be_checked(
    report: Report, envelope: bytes, public: bytes
) -> None:
    outer = json.loads(envelope)
    approver = new_key()
    outer["signatures"].insert(0, json.loads(sign(report, approver))["signatures"][0])
    result = verify(json.dumps(outer).encode(), public)
    assert result.ok
    named = key_id(public_key(public_pem(approver)))
    assert f"signature: that of the key {named}, which was not given" in result.unchecked


def test_a_signature_from_elsewhere_does_not_fit(report: Report, envelope: bytes, key: bytes, public: bytes) -> None:
    outer = json.loads(envelope)
    outer["signatures"] = json.loads(sign(report.model_copy(update={"seed": 1}), key))["signatures"]
    assert not verifies(json.dumps(outer).encode(), public)


def test_what_was_signed_must_hold_together(report: Report, key: bytes, public: bytes, model: Path) -> None:
    """Our own signature does not make a wrong report right."""
    for update, failure in (
        ({"spec": report.spec | {"seed": 1}}, "spec: its digest is"),
        ({"spec_digest": "0" * 64}, "spec: its digest is"),
        ({"output_model": "0" * 64}, "files: the digests listed give the model"),
        (
            {"output_files": {**report.output_files, "config.json": "0" * 64}},
            "files: the digests listed give the model",
        ),
    ):
        result = verify(sign(report.model_copy(update=update), key), public)
        assert len(result.failures) == 1
        assert result.failures[0].startswith(failure)
    (model / "config.json").unlink()
    assert "model: config.json is missing" in verify(sign(report, key), public, model=model).failures


def test_a_spec_with_fields_of_a_later_lethe_keeps_its_digest(report: Report, key: bytes, public: bytes) -> None:
    spec = report.spec | {"attacks": [{"name": "relearn"}]}
    canonical_spec = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    digest = hashlib.sha256(canonical_spec).hexdigest()
    later = report.model_copy(update={"spec": spec, "spec_digest": digest})
    assert verify(sign(later, key), public).ok


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "statement: _type https://in-toto.io/Statement/v0.1, not"),
        ({"predicateType": "urn:lethe:report:v2"}, "statement: predicateType urn:lethe:report:v2, not"),
        ({"subject": []}, "subject: [] is not"),
        ({"subject": [{"name": "model", "digest": {"sha256": "0" * 64}}]}, "subject: [{"),
        ({"predicate": {"version": "1"}}, "report: what was signed is no report that this Lethe knows: spec: Field"),
        ({"predicate": None}, "report: what was signed is no report that this Lethe knows: predicate: Input"),
    ],
)
def test_the_statement_must_have_its_shape(
    report: Report, key: bytes, public: bytes, change: dict[str, Any], failure: str
) -> None:
    result = verify(signed(canonical(statement(report) | change), key), public)
    assert [line for line in result.failures if line.startswith(failure)]
    assert result.exit_code == 1


def test_another_payload_type_is_another_message(report: Report, key: bytes, public: bytes) -> None:
    result = verify(signed(canonical(statement(report)), key, "application/json"), public)
    assert result.failures == ["payload type: application/json, expected application/vnd.in-toto+json"]


@pytest.mark.parametrize(
    "payload", [b"", b"not JSON", b"[]", b"7", b'{"predicate": NaN}', b'{"predicate": 1e999}', b"[" * 700 + b"]" * 700]
)
def test_a_signed_payload_of_another_kind_never_verifies(key: bytes, public: bytes, payload: bytes) -> None:
    assert not verifies(signed(payload, key), public)


def respelled(field: str) -> Callable[[dict[str, Any]], object]:
    def respell(outer: dict[str, Any]) -> None:
        place = outer if field == "payload" else outer["signatures"][0]
        decoded = base64.b64decode(place[field])
        standard = place[field].rstrip("=")
        # The unused bits of the last character, or a missing padding: the same bytes in other letters.
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        last = letters[letters.index(standard[-1]) + 1]
        place[field] = standard[:-1] + last + "=" * (-len(standard) % 4) if len(decoded) % 3 else standard + "===="

    return respell


def drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda outer: outer.pop(name)


@pytest.mark.parametrize(
    "change",
    [
        drop("payload"),
        drop("payloadType"),
        drop("signatures"),
        lambda o: o.update(signatures=[]),
        lambda o: o.update(signatures=[7]),
        lambda o: o.update(signatures={}),
        lambda o: o.update(note="not signed"),
        lambda o: o["signatures"][0].update(note="not signed"),
        lambda o: o["signatures"].append(o["signatures"][0]),
        lambda o: o.update(payload=7),
        lambda o: o.update(payload=o["payload"] + "\n"),
        lambda o: o.update(payload="é"),
        respelled("payload"),
        respelled("sig"),
    ],
)
def test_an_envelope_of_another_shape_is_unreadable(
    envelope: bytes, public: bytes, change: Callable[[dict[str, Any]], object]
) -> None:
    outer = json.loads(envelope)
    change(outer)
    with pytest.raises(LetheError, match="not a DSSE envelope") as caught:
        verify(json.dumps(outer).encode(), public)
    assert caught.value.exit_code == 2


def test_unreadable_files_are_named(place: Place, tmp_path: Path, model: Path) -> None:
    wrong = generate_private_key(SECP384R1()).public_key()
    for other, message in (
        ({"report__json": b"{}\xff"}, "report.json is not UTF-8 at byte 2"),
        ({"report__json": b"{"}, "report.json is not JSON"),
        ({"report__json": b"[" * 100_000}, "report.json is not JSON"),
        ({"report__json": b"1" * 5000}, "report.json is not JSON"),
        ({"report__json": b"[1e-99999999999999999999]"}, "report.json is not JSON"),
        ({"report__json": rb'["\ud800"]'}, "report.json is not JSON"),
        ({"report__json": b"[" * 65 + b"]" * 65}, "report.json is nested more than 64 levels deep"),
        ({"signing__pub__pem": b"no key"}, "public key .*signing.pub.pem is not a PEM file"),
        ({"signing__pub__pem": wrong.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)}, "P-256"),
    ):
        files = place(**other)
        with pytest.raises(LetheError, match=message) as caught:
            verify_files(files["report.json"], None, files["signing.pub.pem"])
        assert caught.value.exit_code == 2
    files = place()
    with pytest.raises(LetheError, match=r"none\.json cannot be read: No such file"):
        verify_files(tmp_path / "none.json", None, files["signing.pub.pem"])
    with pytest.raises(LetheError, match="nowhere is not a folder"):
        verify_files(files["report.json"], tmp_path / "nowhere", files["signing.pub.pem"])
    (model / "link").symlink_to(model / "config.json")
    with pytest.raises(LetheError, match="link is a symbolic link"):
        verify_files(files["report.json"], model, files["signing.pub.pem"])


def test_a_plain_report_needs_its_envelope_beside_it(place: Place) -> None:
    files = place()
    plain = files["report.json"].read_bytes()
    files["report.dsse.json"].unlink()
    with pytest.raises(LetheError, match=r"no report\.dsse\.json lies beside it"):
        verify_files(files["report.json"], None, files["signing.pub.pem"])
    files["report.dsse.json"].write_bytes(plain)
    with pytest.raises(LetheError, match=r"no report\.dsse\.json lies beside it"):
        verify_files(files["report.dsse.json"], None, files["signing.pub.pem"])


def test_decimals_of_any_size_are_compared_exactly(envelope: bytes, report: Report, public: bytes) -> None:
    long = report.model_dump_json().encode().replace(b"0.97", b"0.97" + b"0" * 60 + b"1")
    assert json.loads(long, parse_float=Decimal) != json.loads(report.model_dump_json(), parse_float=Decimal)
    assert not verifies(envelope, public, report=long)
