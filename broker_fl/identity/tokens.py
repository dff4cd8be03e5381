"""Join tokens: with one a site asks to be enrolled, under a password that it draws itself and tells nobody.

A token is the password of a broker user ``<federation>.candidate.<name>`` that may publish to one exchange,
and nothing else. What it publishes is the salted hash of the site's password, as RabbitMQ keeps it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from broker_fl.errors import FrameRefused, SettingError
from broker_fl.identity.accounts import Account
from broker_fl.identity.joinfile import JoinFile, PrivateFile, Secret, read_as
from broker_fl.identity.passwords import fingerprint, hashed, is_hash, new_password
from broker_fl.identity.permissions import Permissions
from broker_fl.topology import Topology

CANDIDATE = "candidate"
MAX_REQUEST_BYTES = 4_000


def candidate_user(account: Account) -> str:
    """The broker's user with which this account is asked for."""
    return f"{account.federation}.{CANDIDATE}.{account.name}"


def candidate_permissions(federation: str) -> Permissions:
    """To publish a request, and nothing else."""
    exchange = Topology(federation).enrolment.replace(".", r"\.")
    return Permissions(write=f"^{exchange}$", max_connections=4, max_channels=10)


class Token(PrivateFile):
    """The file that an operator gives to a site."""

    token: Secret = Field(repr=False)
    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    """Comes back with the request: what was asked with an earlier token of the same name is not heard."""
    expires: Annotated[float, Field(allow_inf_nan=False)]
    """Seconds since 1970."""

    @property
    def url(self) -> str:
        """The broker's, with the candidate's account in it."""
        return self._url(candidate_user(self.account), self.token)

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write it.

        Raises:
            SettingError: it is there already, or cannot be written.
        """
        self._write(path, f"Join token of {self.account}; for one use", overwrite=overwrite)

    def join_file(self) -> JoinFile:
        """A join file with a password that was drawn just now; it opens the account once that is granted."""
        return JoinFile(
            federation=self.federation,
            role=self.role,
            name=self.name,
            broker=self.broker,
            ca=self.ca,
            password=new_password(),
        )


def read_token(path: Path, now: float | None = None) -> Token:
    """Read a token.

    Raises:
        SettingError: it cannot be read, is none, or its time is over.
    """
    token = read_as(Token, path, "join token")
    if token.expires <= (time.time() if now is None else now):
        raise SettingError(f"{path}: this token is no longer valid; ask for another one")
    return token


class EnrolmentRequest(BaseModel):
    """What a site asks for. The account that sends it says for which name."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    format: Literal[1] = 1
    id: Annotated[str, Field(max_length=64)]
    """Of the token."""
    password_hash: Annotated[str, Field(max_length=200)]

    @field_validator("password_hash")
    @classmethod
    def _is_one(cls, value: str) -> str:
        if not is_hash(value):
            raise ValueError("it is no salted SHA-256 in base64")
        return value

    @classmethod
    def of(cls, file: JoinFile, token: Token) -> EnrolmentRequest:
        """Ask for the account of this join file."""
        return cls(id=token.id, password_hash=hashed(str(file.password)))

    @property
    def fingerprint(self) -> str:
        """What site and operator compare, by telephone."""
        return fingerprint(self.password_hash)

    def pack(self) -> bytes:
        """As the body of a message."""
        return self.model_dump_json().encode()

    @classmethod
    def unpack(cls, body: bytes) -> EnrolmentRequest:
        """Read one.

        Raises:
            FrameRefused: it is none.
        """
        if len(body) > MAX_REQUEST_BYTES:
            raise FrameRefused(f"a request has at most {MAX_REQUEST_BYTES} bytes, not {len(body)}")
        try:
            return cls.model_validate(json.loads(body))
        except (ValidationError, ValueError, RecursionError) as error:
            raise FrameRefused(f"this is no request to be enrolled: {str(error)[:200]}") from None
