"""The certificate, given or made on the spot, and what TLS may be with it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

ALPN = "tds/8.0"
_DAYS = 30  # that a certificate made on the spot is valid


class CertificateError(Exception):
    """The certificate cannot be used, or none can be made."""


@dataclass(frozen=True)
class Tls:
    """Contexts for both ways of starting TLS.

    Parameters
    ----------
    within : SSLContext
        For TDS 7, in PRELOGIN packets; at most TLS 1.2, since tickets of TLS 1.3 come after the handshake and have no
        packets to come in.
    first : SSLContext
        For TDS 8.0.
    certificate : bytes
        The certificate in PEM, for clients that want to compare or trust it.
    """

    within: ssl.SSLContext
    first: ssl.SSLContext
    certificate: bytes


def load(certificate: str | os.PathLike[str], key: str | os.PathLike[str] | None) -> Tls:
    """Use a certificate.

    Parameters
    ----------
    certificate : path
        PEM, with the chain behind it if there is one.
    key : path, optional
        PEM without a passphrase; in the file of the certificate where not given.

    Raises
    ------
    CertificateError
    """
    try:
        within, first = _context(certificate, key), _context(certificate, key)
        pem = Path(certificate).read_bytes()
    except (OSError, ssl.SSLError) as error:
        # An encrypted key would have OpenSSL ask on the terminal; `_context` refuses that.
        raise CertificateError(f"the certificate {os.fspath(certificate)} cannot be used: {error}") from None
    within.maximum_version = ssl.TLSVersion.TLSv1_2
    first.set_alpn_protocols([ALPN])
    return Tls(within, first, pem)


def make(host: str) -> Tls:
    """Make a certificate that nobody signed, for a host name or address, `localhost` and this machine.

    Raises
    ------
    CertificateError
        The package `cryptography` is absent: install `vdi_ext[serve]`.
    """
    certificate, key = generate(host)
    with tempfile.TemporaryDirectory(prefix="vdi-ext-") as folder:  # readable by this user alone
        paths = [os.path.join(folder, name) for name in ("certificate", "key")]
        for path, content in zip(paths, (certificate, key), strict=True):
            with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(content)
        return load(paths[0], paths[1])


def _context(certificate: str | os.PathLike[str], key: str | os.PathLike[str] | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key, password=_no_passphrase)
    return context


def _no_passphrase() -> bytes:
    raise CertificateError("the key of the certificate is encrypted; give one that is not")


def generate(host: str) -> tuple[bytes, bytes]:
    """A certificate that nobody signed, and its key, both in PEM. Raises `CertificateError` as `make`."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import rsa
    except ImportError:
        raise CertificateError(
            'a certificate made on the spot needs the package cryptography: pip install "vdi_ext[serve]", or give one'
        ) from None
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    names: list[x509.GeneralName] = []
    for name in dict.fromkeys(["localhost", "127.0.0.1", "::1", host, socket.gethostname()]):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            with contextlib.suppress(ValueError):  # a name that no certificate can hold
                names.append(x509.DNSName(name))
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vdi_ext stand-in")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
