"""The data port's certificate: signed by itself, made once, trusted because control hands it out.

Clients trust exactly this certificate (docs/protocol.md, `data_certificate`), so the names in it
and its issuer prove nothing and are for people only.
"""

from __future__ import annotations

import datetime
import socket
from pathlib import Path
from typing import Final

from shmbroker.errors import ConfigError

_LIFE: Final = datetime.timedelta(days=36_500)  # replaced by hand; an expiry would stop consumers
_SKEW: Final = datetime.timedelta(days=1)  # of clients whose clocks are behind


def write_certificate(certificate: Path, key: Path, host_names: tuple[str, ...] = ()) -> None:
    """Makes both files (PEM; the key 0600). ConfigError without the package `cryptography`."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise ConfigError(
            "can't be made without the Python package cryptography; install it, or put a "
            f"certificate and its key there yourself: {key}",
            file=str(certificate),
        ) from None
    from shmbroker.control.keys import write_private

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shmbroker data port")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(text) for text in dict.fromkeys(host_names or (socket.gethostname(),))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(private, hashes.SHA256())
    )
    secret = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_private(key, secret)
    write_private(certificate, made.public_bytes(serialization.Encoding.PEM), 0o644)


__all__ = ["write_certificate"]
