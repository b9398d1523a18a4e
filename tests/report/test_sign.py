import base64
import json

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from core.report.keys import key_id, public_key
from core.report.schema import Report
from core.report.sign import sign


def test_the_envelope_holds_for_anyone_who_reads_the_dsse_specification(
    report: Report, envelope: bytes, public: bytes
) -> None:
    outer = json.loads(envelope)
    assert set(outer) == {"payload", "payloadType", "signatures"}
    assert outer["payloadType"] == "application/vnd.in-toto+json"
    (signature,) = outer["signatures"]
    assert signature["keyid"] == key_id(public_key(public))

    payload = base64.b64decode(outer["payload"], validate=True)
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    key = load_pem_public_key(public)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(base64.b64decode(signature["sig"], validate=True), signed, ec.ECDSA(SHA256()))

    assert json.loads(payload) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model", "digest": {"sha256": report.output_model}}],
        "predicateType": "urn:lethe:report:v1",
        "predicate": json.loads(report.model_dump_json()),
    }


def test_what_is_signed_depends_on_the_report_alone(report: Report, envelope: bytes, key: bytes) -> None:
    again = Report.model_validate_json(report.model_dump_json())
    assert json.loads(sign(again, key))["payload"] == json.loads(envelope)["payload"]
