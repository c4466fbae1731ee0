"""Signing keys, as the service's REST interface has them: `/v2/keys`. Pure.

They sign nothing, since nothing is delivered; a rotation makes the next one the current.
`service` routes here.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from dispatcher.devserver.management import Answer, only
from dispatcher.devserver.options import Refused

_KEY_BYTES: Final = 14


class SigningKeys:
    """The pair of one account; drawn from its instance, so that a restart brings new ones."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._turns = 0

    def answer(self, method: str, path: list[str]) -> Answer:
        """`GET /v2/keys` and `POST /v2/keys/rotate`."""
        if path not in ([], ["rotate"]):
            raise Refused(404, "not found: there are /v2/keys and /v2/keys/rotate")
        only(method, "POST" if path else "GET")
        self._turns += len(path)
        return 200, {"current": self._key(self._turns), "next": self._key(self._turns + 1)}

    def _key(self, number: int) -> str:
        text = f"{self._instance}\0{number}".encode()
        return f"sig_{blake2b(text, digest_size=_KEY_BYTES).hexdigest()}"
