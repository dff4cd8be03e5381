"""What is written to standard error: text for people or JSON for machines; what each line is about."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any, Literal, TextIO
from urllib.parse import unquote, urlsplit

from broker_fl.roles.about import subject

LogFormat = Literal["text", "json"]
_LEVELS = ("ERROR", "WARNING", "INFO", "DEBUG")
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_FOREIGN = ("pika", "asyncio", "asyncssh", "matplotlib", "PIL", "numexpr", "urllib3")
"""Libraries whose own messages are only for ``-vv``."""

_IN_URL = re.compile(r"(\w+://[^\s:/@]*):[^\s/@]+@")
"""The password in ``amqps://user:password@host``."""
_secrets: set[str] = set()
MIN_SECRET = 8
"""Characters of what is blotted out wherever it appears: ``guest`` is a word, too."""


def hide(secret: str | None) -> None:
    """Never write this out, from now on; nor as it is shown in quotes, with its backslashes doubled."""
    if secret and len(secret) >= MIN_SECRET:
        _secrets.update((secret, repr(secret)[1:-1], json.dumps(secret)[1:-1]))


def hide_passwords(*urls: str) -> None:
    """As ``hide``, of the password in each."""
    for url in urls:
        try:
            password = urlsplit(url).password
        except ValueError:  # who uses the URL says what is wrong with it
            continue
        if password:
            hide(password)
            hide(unquote(password))


def redacted(text: str) -> str:
    """The text without passwords in URLs, and without what ``hide`` was told."""
    text = _IN_URL.sub(r"\1:***@", text)
    for secret in sorted(_secrets, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(secret, "***")
    return text


def escaped(text: str) -> str:
    """The text in one line: what is not to be seen (line breaks, terminal escapes, changes of direction) as
    ``\\n``, ``\\x1b`` or ``\\u202e``. What others send ends up in messages, and must not look like a line of
    ours.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class _Formatter(logging.Formatter):
    """Times in UTC with milliseconds: logs of several machines are read side by side.

    The traceback of an error is shown to who asked for it; others get its last line. What is hidden is taken
    out of each text before it is escaped: afterwards it would look like something else.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__(_FORMAT)
        self._tracebacks = tracebacks


class TextFormatter(_Formatter):
    """For people; what a line is about comes in brackets at the end of the message."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, or several with a traceback."""
        about = " ".join(f"{name}={fact}" for name, fact in subject(of_process=False).items())
        copy = logging.makeLogRecord(record.__dict__)
        words = record.getMessage()
        copy.msg, copy.args = escaped(redacted(f"{words} [{about}]" if about else words)), None
        return redacted(super().format(copy))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """The error behind a record, indented: no line of it looks like a record."""
        if self._tracebacks:
            lines = redacted(super().formatException(ei)).splitlines()
            return "\n".join(f"  {escaped(line)}" for line in lines)
        return f"  {ei[0].__name__}: {escaped(redacted(str(ei[1])))} (-vv shows where)" if ei[0] else ""


class JsonFormatter(_Formatter):
    """For machines: an object a line, with federation, job, round and learner where they apply."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **subject(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, _ = record.exc_info
            line["error"] = {"type": kind.__name__, "message": str(error)}
            if self._tracebacks:
                line["error"]["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_all_redacted(line), ensure_ascii=False)


def _all_redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _all_redacted(one) for name, one in value.items()}
    return redacted(value) if isinstance(value, str) else value


def configure_logging(
    level: str, verbosity: int = 0, *, log_format: LogFormat = "text", stream: TextIO | None = None
) -> None:
    """Log to standard error; ``verbosity`` counts the levels below ``level``, and from 2 on hides nothing."""
    chosen = _LEVELS[min(_LEVELS.index(level) + verbosity, len(_LEVELS) - 1)]
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter(tracebacks=verbosity >= 2))
    logging.basicConfig(level=chosen, handlers=[handler], force=True)
    for name in _FOREIGN:
        logging.getLogger(name).setLevel(logging.INFO if verbosity >= 2 else logging.CRITICAL)
