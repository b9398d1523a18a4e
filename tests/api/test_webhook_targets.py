"""Where a webhook may lead. A caller chooses the URL, so every way to name an inner address is tried, at registration's
check and on the wire: redirects, names that change, names with several addresses, other spellings."""

import ipaddress
import ssl
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from api.store.outbox import Outcome, Try
from api.webhooks import sending
from api.webhooks.targets import Guard, Refused, parsed, public
from core.errors import SpecError
from tests.api.receiver import Receiver

PUBLIC = "93.184.216.34"


def guard(*addresses: str, allow: Sequence[str] = ()) -> Guard:
    """A guard for whom every name has these addresses, and whose addresses are themselves."""

    def resolve(host: str, _port: int) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            return list(addresses)

    return Guard(allow, resolve)


def sent(url: str, by: Guard) -> Outcome:
    message = Try("dlv_1", 1, "whk_1", "prn_1", url, b"", {"type": "ping"})
    return sending.send(message, b"s" * 32, by, datetime.now(UTC))


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/", "https://127.9.9.9:8443/", "https://10.0.0.1/", "https://172.16.0.1/",
        "https://192.168.1.1/", "https://169.254.169.254/latest/meta-data", "https://100.64.0.1/", "https://0.0.0.0/",
        "https://224.0.0.1/", "https://255.255.255.255/", "https://240.0.0.1/", "https://192.0.2.1/",
        "https://[::1]/", "https://[::]/", "https://[fe80::1]/", "https://[fc00::1]/", "https://[ff02::1]/",
        "https://[::ffff:127.0.0.1]/", "https://[::ffff:10.0.0.1]/", "https://[2002:7f00:1::]/",
        "https://[64:ff9b::7f00:1]/", "https://[2001:0:5ef5:79fd:0:0:80ff:fffe]/", "https://[::127.0.0.1]/",
        "https://[fec0::1]/",
    ],
)  # fmt: skip
def test_no_address_but_a_public_one(url: str) -> None:
    with pytest.raises(SpecError, match="LETHE_WEBHOOK_ALLOW"):
        Guard(()).check(url)
    assert sent(url, Guard(())) == Outcome(None, "target_refused")


@pytest.mark.parametrize(
    "url",
    [
        "https://2130706433/", "https://0x7f.1/", "https://0177.0.0.1/", "https://127.1/", "https://0x7f000001/",
        "https://user@example.org/", "https://user:pw@example.org/", "https://example.org/#part",
        "ftp://example.org/", "file:///etc/passwd", "gopher://example.org/", "//example.org/", "example.org", "",
        "https:///path", "https://exa mple.org/", "https://example.org:0/", "https://example.org:70000/",
        "https://[fe80::1%25eth0]/", "https://example.org/\n", "https://[::1", "https://" + "a" * 3000,
        "https://a\\@example.org/",
    ],
)  # fmt: skip
def test_no_other_spelling(url: str) -> None:
    with pytest.raises(SpecError, match=r"^url: .*Allowed: "):
        guard(PUBLIC).check(url)


@pytest.mark.parametrize("url", ["http://example.org/", "https://example.org:25/", "https://example.org:80/"])
def test_only_https_and_to_ports_that_speak_it(url: str) -> None:
    with pytest.raises(SpecError, match="Allowed: https, to port 443 or from 1024 on"):
        guard(PUBLIC).check(url)


@pytest.mark.parametrize("url", ["https://example.org/a?b=c", "https://example.org:8443/", f"https://{PUBLIC}/"])
def test_a_public_host_is_taken(url: str) -> None:
    guard(PUBLIC, "2606:2800:220:1::1").check(url)


def test_of_several_addresses_one_that_is_private_is_enough() -> None:
    for addresses in ((PUBLIC, "10.0.0.1"), ("::1", PUBLIC), (PUBLIC, "::ffff:127.0.0.1"), ()):
        with pytest.raises(SpecError):
            guard(*addresses).check("https://example.org/")
        assert sent("https://example.org/", guard(*addresses)).error == "target_refused"


def test_names_and_networks_can_be_allowed_and_nothing_beside_them() -> None:
    allow = ["hooks.internal", "10.1.0.0/16"]
    guard("192.168.0.5", allow=allow).check("http://hooks.internal:80/")
    guard("10.1.2.3", allow=allow).check("http://other.internal/")
    guard("10.1.2.3", PUBLIC, allow=allow).check("https://other.internal/")
    for addresses, url in (
        (("192.168.0.5",), "https://sub.hooks.internal/"),
        (("10.2.0.1",), "https://other.internal/"),
        (("10.1.2.3", "10.2.0.1"), "https://other.internal/"),
        (("10.1.2.3", PUBLIC), "http://other.internal/"),
    ):
        with pytest.raises(SpecError):
            guard(*addresses, allow=allow).check(url)


def test_a_name_without_an_address_and_one_with_an_inner_one_are_told_alike() -> None:
    said = []
    for addresses in ((), ("10.0.0.1",)):
        with pytest.raises(SpecError) as error:
            guard(*addresses).check("https://example.org/")
        said.append(str(error.value))
    assert said[0] == said[1]


def test_a_name_server_that_hangs_costs_no_more_than_a_try_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "TIMEOUT", 0.3)
    asked = threading.Event()

    def hang(_host: str, _port: int) -> list[str]:
        asked.wait(10)
        return [PUBLIC]

    began = time.monotonic()
    assert sent("https://example.org/", Guard((), hang)).error == "target_refused"
    assert time.monotonic() - began < 5
    asked.set()


def test_a_name_that_leads_elsewhere_later_is_not_followed() -> None:
    """Rebinding: public when it is registered, and loopback when it is connected to."""
    with Receiver() as receiver:
        answers = [[PUBLIC], ["127.0.0.1"]]
        rebound = Guard((), lambda *_: answers.pop(0))
        rebound.check(f"https://example.org:{receiver.port}/")
        assert sent(f"https://example.org:{receiver.port}/", rebound).error == "target_refused"
        assert answers == []
        # And it is asked once: what was checked is what is connected to.
        asked: list[str] = []

        def once(host: str, _port: int) -> list[str]:
            asked.append(host)
            return ["127.0.0.1"] if len(asked) == 1 else ["192.0.2.1"]

        assert sent(f"http://example.org:{receiver.port}/", Guard(["127.0.0.1"], once)) == Outcome(204, None)
        assert asked == ["example.org"]
        assert receiver.got[0].headers["host"] == f"example.org:{receiver.port}"


def test_a_redirect_is_not_followed() -> None:
    with Receiver() as inner, Receiver(answers=lambda _: 307, redirect=inner.url) as outer:
        assert sent(outer.url, Guard(["127.0.0.0/8"])) == Outcome(307, "answered 307")
        assert (len(outer.got), len(inner.got)) == (1, 0)


def test_the_environments_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver, Receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert sent(receiver.url, Guard(["127.0.0.0/8"])).answered == 204
        assert (len(receiver.got), len(proxy.got)) == (1, 0)


def test_the_second_address_is_tried_where_the_first_does_not_answer() -> None:
    with Receiver() as receiver:
        both = Guard(["127.0.0.0/8"], lambda *_: ["127.0.0.2", "127.0.0.1"])
        assert sent(f"http://example.org:{receiver.port}/", both).answered == 204


def test_a_receiver_that_trickles_is_left_after_the_time_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and the answer never ends."""
    monkeypatch.setattr(sending, "TIMEOUT", 0.5)
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not stop.wait(0.1):
                self.wfile.write(b"a")
                self.wfile.flush()

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        outcome = sent(f"http://127.0.0.1:{server.server_address[1]}/", Guard(["127.0.0.1"]))
        stop.set()
        thread.join()
    assert outcome == Outcome(None, "ReadTimeout")


def certificate(folder: Path, name: str) -> Path:
    """A certificate of its own authority, for one host name, with its key in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    moment = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(moment - timedelta(days=1))
        .not_valid_after(moment + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "tls.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + secret)
    return file


def test_the_certificate_must_be_the_names_though_an_address_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = certificate(tmp_path, "hooks.example.org")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    sending._tls.cache_clear()
    with Receiver() as receiver:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        receiver._server.socket = context.wrap_socket(receiver._server.socket, server_side=True)
        here = Guard(["127.0.0.1"], lambda *_: ["127.0.0.1"])
        assert sent(f"https://hooks.example.org:{receiver.port}/hook", here).answered == 204
        assert sent(f"https://other.example.org:{receiver.port}/hook", here) == Outcome(None, "ConnectError")
    sending._tls.cache_clear()
    assert len(receiver.got) == 1


def test_what_is_checked_is_what_is_connected_to() -> None:
    target = parsed("HTTPS://EXAMPLE.org.:8443/a%20b?c=d&e=%2F")
    assert (target.scheme, target.host, target.port) == ("https", "example.org", 8443)
    assert target.path == "/a%20b?c=d&e=%2F"
    assert parsed("https://bücher.example/").host == "xn--bcher-kva.example"
    assert parsed("https://[2606:2800::1]/").authority == "[2606:2800::1]"
    with pytest.raises(Refused):
        parsed("https://0x7f.0.0.1/")


def test_public_addresses_are_public() -> None:
    for text in ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert public(ipaddress.ip_address(text)), text
