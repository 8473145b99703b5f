"""Certificates: the proxy's own CA, and one for each host whose TLS it opens. No IO.

A CA may be limited to some hosts by name constraints, so that its key, if it is ever lost, speaks
for no others. Certificates of hosts live for a day.

Source: RFC 5280 (certificates), RFC 9525 (names of servers in certificates).
"""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from peer.shell.origin.places import as_address
from shoal.wire.errors import UsageError

CA_DAYS: Final = 5 * 365
HOST_HOURS: Final = 24
SKEW: Final = datetime.timedelta(hours=1)
"""Clocks of clients may be behind by so much."""
NAME_CHARACTERS_MAX: Final = 64
"""Of a common name (RFC 5280, appendix A)."""

_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Minted:
    """A certificate with its key, both PEM."""

    certificate: bytes
    key: bytes
    until: datetime.datetime

    def __repr__(self) -> str:
        return f"Minted(until {self.until})"


def make_ca(name: str, hosts: Sequence[str], now: datetime.datetime) -> Minted:
    """A new CA. `hosts`: the names (with all below them) and addresses that it may speak for;
    without any, all."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    until = now + datetime.timedelta(days=CA_DAYS)
    builder = (
        _builder(subject, subject, key.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if hosts:
        permitted = [_constraint(host) for host in hosts]
        # Constraints bind only the kinds of names that they mention.
        if not any(isinstance(each, x509.DNSName) for each in permitted):
            permitted.append(x509.DNSName("invalid"))
        excluded = None
        if not any(isinstance(each, x509.IPAddress) for each in permitted):
            excluded = [
                x509.IPAddress(ipaddress.ip_network(text)) for text in ("0.0.0.0/0", "::/0")
            ]
        builder = builder.add_extension(x509.NameConstraints(permitted, excluded), critical=True)
    return Minted(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key), until)


class Authority:
    """A CA that certificates are made with. Raises UsageError for files that are none."""

    def __init__(self, certificate: bytes, key: bytes) -> None:
        try:
            self._certificate = x509.load_pem_x509_certificate(certificate)
        except ValueError:
            raise UsageError("proxy.ca_cert holds no certificate in PEM") from None
        try:
            loaded = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError):
            # The original's text may quote the file.
            raise UsageError("proxy.ca_key holds no private key in PEM without password") from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise UsageError("proxy.ca_key: only EC and RSA keys are used")
        if loaded.public_key() != self._certificate.public_key():
            raise UsageError("proxy.ca_key is not the key of proxy.ca_cert")
        try:
            constraints = self._certificate.extensions.get_extension_for_class(
                x509.BasicConstraints
            ).value
        except x509.ExtensionNotFound:
            constraints = None
        if constraints is None or not constraints.ca:
            raise UsageError("proxy.ca_cert is no CA: make one with `shoal proxy ca --out DIR`")
        self._key: _Key = loaded
        # One key for all hosts: who reads it out of this process can read the CA's as well.
        self._host_key = ec.generate_private_key(ec.SECP256R1())

    def check_time(self, now: datetime.datetime) -> None:
        """Raises UsageError if the CA is not valid now."""
        if (
            not self._certificate.not_valid_before_utc
            <= now
            < self._certificate.not_valid_after_utc
        ):
            raise UsageError(
                f"proxy.ca_cert is valid from {self._certificate.not_valid_before_utc:%Y-%m-%d} to "
                f"{self._certificate.not_valid_after_utc:%Y-%m-%d}: make a new one"
            )

    def mint(self, host: str, now: datetime.datetime) -> Minted:
        """A certificate for a host name or IP address. Raises UsageError if the CA is too old."""
        self.check_time(now)
        until = min(
            now + datetime.timedelta(hours=HOST_HOURS), self._certificate.not_valid_after_utc
        )
        address = as_address(host)
        name = x509.DNSName(host) if address is None else x509.IPAddress(address)
        # An address as common name would be taken for a host's name.
        plain = address is None and len(host) <= NAME_CHARACTERS_MAX
        subject = _name(host if plain else "shoal proxy")
        public = self._host_key.public_key()
        builder = (
            _builder(subject, self._certificate.subject, public, now, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(self._issuer_id(), critical=False)
        )
        chain = _pem(builder.sign(self._key, hashes.SHA256())) + _pem(self._certificate)
        return Minted(chain, _key_pem(self._host_key), until)

    def _issuer_id(self) -> x509.AuthorityKeyIdentifier:
        try:
            own = self._certificate.extensions.get_extension_for_class(
                x509.SubjectKeyIdentifier
            ).value
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    until: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(until)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _constraint(host: str) -> x509.GeneralName:
    address = as_address(host)
    if address is None:
        return x509.DNSName(host)
    return x509.IPAddress(ipaddress.ip_network(address))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
