"""TDS, the protocol of SQL Server's clients: a network endpoint for the stand-in."""

from __future__ import annotations

from .endpoint import Endpoint
from .prelogin import Encrypt
from .tls import CertificateError

__all__ = ["CertificateError", "Encrypt", "Endpoint"]
