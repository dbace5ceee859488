"""A key and a certificate for peers that encrypt with TLS, made for one run; both sides have them, and check them.

The host of zmqagents asks every client for its key, so these servers do as well. Standard library and the program
openssl: the peers' environments have nothing else.
"""

from __future__ import annotations

import subprocess
from typing import NamedTuple

DAYS = 2


class Certificate(NamedTuple):
    """Where both files are; the certificate is signed with its own key, and valid for 127.0.0.1."""

    certificate: str
    key: str


def make(directory: str) -> Certificate:
    """Make both in ``directory``. Raises subprocess.CalledProcessError, FileNotFoundError without openssl."""
    made = Certificate(f"{directory}/certificate.pem", f"{directory}/key.pem")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", str(DAYS), "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", made.key, "-out", made.certificate,
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return made
