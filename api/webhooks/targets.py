"""Where a webhook may lead: to public addresses, and to hosts that the settings name. Nowhere else.

A caller chooses the URL and this service connects, so without a guard a caller could reach what only the service can:
its own machine, the network around it, a cloud's metadata. A name is resolved once, every address that it has is
checked, and the connection is made to an address that was checked: what it resolves to a moment later changes nothing.
"""

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import httpx

from core.errors import LetheError, Problem, SpecError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Names to addresses, as text. Raises OSError where there is none.
Resolve = Callable[[str, int], Sequence[str]]

LONGEST = 2000
RESOLVED_WITHIN = 10.0  # seconds
_UNICAST = ipaddress.ip_network("2000::/3")  # all that was ever handed out of IPv6
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the last 32 bits are an IPv4 address that a gateway would connect to


class Refused(LetheError):
    """The URL leads where no webhook may lead."""

    code = "target_refused"


def resolve(host: str, port: int) -> Sequence[str]:
    """Every address that the system knows of the name, each once."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class Target:
    """A URL taken apart. It is read once, so that what is checked is what is connected to."""

    scheme: str
    host: str  # as it goes into the certificate's check: lower case, international names in their ASCII form
    port: int
    path: str  # with the query
    authority: str  # for the Host header


class Guard:
    """Knows the hosts and networks that are allowed beside public addresses."""

    def __init__(self, allow: Sequence[str], resolve: Resolve = resolve) -> None:
        """`allow` holds host names, addresses, and networks such as 10.1.0.0/16."""
        self._resolve = resolve
        self._networks: list[Network] = []
        self._hosts: set[str] = set()
        for entry in allow:
            try:
                self._networks.append(ipaddress.ip_network(entry))
            except ValueError:
                self._hosts.add(entry.lower().rstrip("."))

    def check(self, url: str) -> Target:
        """The URL's target, if a webhook may lead there now. Raises SpecError, which says what is allowed."""
        try:
            target = parsed(url)
            self.addresses(target.host, target.port, target.scheme)
        except Refused as error:
            raise SpecError([Problem("url", None, error.message)]) from None
        return target

    def addresses(self, host: str, port: int, scheme: str = "https", within: float = RESOLVED_WITHIN) -> list[str]:
        """The host's addresses, of which a connection may take any. Raises Refused unless all of them are allowed, and
        known within so many seconds."""
        try:
            texts = _in_time(within, self._resolve, host, port)
            found = [ipaddress.ip_address(text.partition("%")[0]) for text in texts]
        except (OSError, UnicodeError, ValueError):
            found = []
        trusted = host in self._hosts or all(map(self._listed, found))
        if not found or not (trusted or all(self._listed(address) or public(address) for address in found)):
            # One message for both: it must not tell which names exist in a network that the caller cannot see.
            raise Refused(
                f"{host} has no address, or one that no webhook may lead to. Allowed: hosts all of whose "
                "addresses are public, and those that LETHE_WEBHOOK_ALLOW names."
            )
        if not trusted and (scheme != "https" or (port != 443 and port < 1024)):
            raise Refused(
                f"{scheme} to port {port} is not allowed. Allowed: https, to port 443 or from 1024 on; anything "
                "else to hosts that LETHE_WEBHOOK_ALLOW names."
            )
        return [str(address) for address in found]

    def _listed(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _in_time(seconds: float, resolve: Resolve, host: str, port: int) -> Sequence[str]:
    """Raises TimeoutError, which is an OSError, where it takes longer."""
    found: Future[Sequence[str]] = Future()

    def look_up() -> None:
        try:
            found.set_result(resolve(host, port))
        except Exception as error:
            found.set_exception(error)

    # The system's resolver knows no deadline: what it takes beyond that is waited for by nobody.
    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    return found.result(seconds)


def parsed(url: str) -> Target:
    """The URL taken apart. Raises Refused for what is no plain http or https URL."""
    try:
        read = httpx.URL(url) if len(url) <= LONGEST and url.isprintable() else httpx.URL()
    except (httpx.InvalidURL, ValueError):
        read = httpx.URL()
    host = read.raw_host.decode("ascii", "replace").lower().rstrip(".")
    odd = not host or "%" in host or read.userinfo or read.fragment or not 0 < (read.port or 443) < 1 << 16
    if read.scheme not in ("https", "http") or odd or read.port == 0:
        raise Refused(
            f"This is not an absolute http or https URL of at most {LONGEST} characters, without user name, password "
            "and fragment. Allowed: https://host/path."
        )
    if _numeric(host):
        raise Refused("The host is a number but no address. Allowed: 192.0.2.1, [2001:db8::1], or a name.")
    port = read.port or (443 if read.scheme == "https" else 80)
    return Target(read.scheme, host, port, read.raw_path.decode("ascii"), read.netloc.decode("ascii"))


def public(address: Address) -> bool:
    """Whether anybody on the internet could connect to it just as well."""
    return all(
        part.is_global
        and not (part.is_multicast or part.is_reserved or part.is_unspecified or part.is_link_local)
        and (part.version == 4 or part in _UNICAST)
        for part in _meant(address)
    )


def _meant(address: Address) -> Iterator[Address]:
    """The address, and any IPv4 address that it stands for."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            yield address.ipv4_mapped
            return
        if address.sixtofour:
            yield address.sixtofour
        if address.teredo:
            yield from address.teredo
        if address in _NAT64:
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
            return
    yield address


def _numeric(host: str) -> bool:
    """Whether it is another spelling of an IPv4 address, such as 2130706433, 0x7f.1 or 0177.0.0.1: old libraries read
    those as addresses, and other programs read them differently."""
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return False
    last = host.rpartition(".")[2]
    return last.isdigit() or last.startswith("0x")
