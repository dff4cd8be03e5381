"""The join file: all that a site needs to take part. TOML, made by ``broker-fl enroll``, mode 0600."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from broker_fl.errors import SettingError
from broker_fl.identity.accounts import Account, Role
from broker_fl.identity.private_file import PendingFile, read_private, warn_if_open, write_private
from broker_fl.security import Security
from broker_fl.wire.fields import Identifier

FORMAT = 1
_URL = re.compile(r"(?P<scheme>amqps?)://(?P<rest>[^\s@]+)")
F = TypeVar("F", bound="PrivateFile")

BrokerUrl = Annotated[str, Field(pattern=r"^amqps?://[^\s@]+$", max_length=2_000)]
"""Where the broker is, without an account."""
Pem = Annotated[str, Field(max_length=500_000, pattern="^-----BEGIN ")]
Secret = Annotated[str, Field(min_length=1, max_length=1_000)]


class PrivateFile(BaseModel):
    """What join files and tokens have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    federation: Identifier
    role: Role
    name: Identifier
    broker: BrokerUrl
    ca: Pem | None = None
    """Authorities that the broker's certificate may be from; None: those of the system."""

    @property
    def account(self) -> Account:
        """Who the file makes one."""
        return Account(self.federation, self.role, self.name)

    def _url(self, user: str, password: str | None) -> str:
        found = _URL.fullmatch(self.broker)
        assert found is not None  # noqa: S101 - the field's pattern says so
        secret = "" if password is None else f":{quote(password, safe='')}"
        return f"{found['scheme']}://{quote(user, safe='')}{secret}@{found['rest']}"

    def to_toml(self, words: str) -> str:
        """As it stands in a file, below a line of ``words``."""
        lines = [f"# {words}", "# It is a secret: who has it is you. Mode 0600, no e-mail."]
        for name, value in self.model_dump(exclude_none=True).items():
            lines.append(f"{name} = {_toml(value)}")
        return "\n".join(lines) + "\n"

    def _write(self, path: Path, words: str, *, overwrite: bool) -> None:
        write_private(path, self.to_toml(words), overwrite=overwrite)


class JoinFile(PrivateFile):
    """What a party connects with."""

    password: Secret | None = Field(default=None, repr=False)
    certificate: str | None = None
    """Path of a client certificate (PEM), which is the login where there is no password; from the file's
    folder.
    """
    key: str | None = None
    keys: Annotated[tuple[str, ...], Field(max_length=1_000)] = ()
    """Public keys of the federation. Nothing is signed yet, so it is empty and not used: it has its place so
    that files which have keys are read by programs of today.
    """
    expires: str | None = None
    """Until when the account is meant to be used; a date."""

    @model_validator(mode="after")
    def _has_a_login(self) -> Self:
        if (self.password is None) == (self.certificate is None):
            raise ValueError("it has to have a password or a certificate, and not both")
        return self

    @property
    def url(self) -> str:
        """The broker's, with the account in it."""
        return self._url(self.account.user, self.password)

    def security(self, path: Path) -> Security:
        """How the broker is reached; ``path`` is the join file's."""
        folder = path.parent
        return Security(
            ca_text=self.ca,
            cert_file=None if self.certificate is None else folder / self.certificate,
            key_file=None if self.key is None else folder / self.key,
        )

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write it.

        Raises:
            SettingError: it is there already, or cannot be written.
        """
        self._write(path, self._words, overwrite=overwrite)

    def prepare(self, path: Path) -> PendingFile:
        """Write it beside where it is to be, to be placed when its password is that of the account.

        Raises:
            SettingError: it cannot be written.
        """
        return PendingFile(path, self.to_toml(self._words))

    @property
    def _words(self) -> str:
        return f"Join file of {self.account}"


def read_join_file(path: str | Path) -> JoinFile:
    """Read a join file.

    Raises:
        SettingError: it cannot be read, or is none; says what and where.
    """
    return read_as(JoinFile, Path(path), "join file")


def read_as(kind: type[F], path: Path, what: str) -> F:
    """Read a file of that kind.

    Raises:
        SettingError: it cannot be read, or is none.
    """
    try:
        fields = tomllib.loads(read_private(path))
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits are a ValueError only
        raise SettingError(f"{path} is no {what}: it is not valid TOML ({str(error)[:200]})") from None
    if (version := fields.get("format")) != FORMAT:
        is_short = not isinstance(version, int) or abs(version) < 1_000_000  # Python writes no longer ones
        raise SettingError(
            f"{path} is no {what} that this version of broker_fl can read: its format is "
            f"{repr(version)[:50] if is_short else 'a large number'}, not {FORMAT}"
        )
    try:
        read = kind.model_validate(_tuples(fields))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:50] for part in first["loc"]) or "it"
        raise SettingError(f"{path} is no {what}: {where}: {first['msg'][:300]}") from None
    warn_if_open(path)
    return read


def without_account(url: str) -> str:
    """A broker's URL as it stands in join files.

    Raises:
        SettingError: it is not one.
    """
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    found = f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"
    if not _URL.fullmatch(found):
        # Nothing of the URL is repeated: a password with a bare / ends up behind the host.
        raise SettingError(
            "broker URL: it must look like amqp[s]://host[:port]/vhost, "
            "special characters percent-encoded (/ is %2F, @ is %40)"
        )
    return found


def _toml(value: Any) -> str:
    """A text, a number or a list of texts; JSON's escapes are TOML's, and a PEM stays readable."""
    if (
        isinstance(value, str)
        and "\n" in value
        and "'" not in value
        and value.replace("\n", "").isprintable()
    ):
        return f"'''\n{value}'''"
    words = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    return words.replace("\x7f", "\\u007f")  # the one character that JSON does not escape and TOML forbids


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
