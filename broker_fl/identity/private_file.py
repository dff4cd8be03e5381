"""Files that hold a secret: for their owner's eyes, written whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path

from broker_fl.errors import SettingError

log = logging.getLogger(__name__)
MAX_BYTES = 1 << 20


class PendingFile:
    """A file that only its owner may read: safe on the disk, under a name of its own until it is placed."""

    def __init__(self, path: Path, text: str) -> None:
        """Write it, beside where it is to be.

        Raises:
            SettingError: it cannot be written; nothing of it is left.
        """
        self.path = path
        self.temporary: Path | None = None
        try:
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
            self.temporary = Path(name)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            _sync(path.parent)
        except OSError as error:
            self.discard()
            raise SettingError(f"{path} cannot be written: {error.strerror}") from error
        except BaseException:
            self.discard()
            raise

    def place(self, *, overwrite: bool = False) -> None:
        """Give it its name, whole.

        Raises:
            SettingError: there is such a file already, and ``overwrite`` was not asked for; or it cannot be
                done. The text is still where it was.
        """
        assert self.temporary is not None  # noqa: S101 - nobody places what is discarded
        try:
            if overwrite:
                self.temporary.replace(self.path)
            else:
                self.path.hardlink_to(self.temporary)  # unlike a renaming it never takes another's place
        except FileExistsError:
            raise SettingError(f"{self.path} is there already; give --force to replace it") from None
        except OSError as error:
            raise SettingError(f"{self.path} cannot be written: {error.strerror}") from error
        _sync(self.path.parent)
        self.discard()

    def keep(self) -> Path:
        """Leave it where it is for good; where that is."""
        assert self.temporary is not None  # noqa: S101 - nobody keeps what is discarded
        kept, self.temporary = self.temporary, None
        return kept

    def discard(self) -> None:
        """Delete it, unless it was placed or is kept."""
        if self.temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                self.temporary.unlink()
            self.temporary = None


def _sync(folder: Path) -> None:
    """Have a name in it survive a power cut, where its file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_private(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Make a file that only its owner may read; it is there whole, or not at all.

    Raises:
        SettingError: it is there already, and ``overwrite`` was not asked for; or it cannot be written.
    """
    file = PendingFile(path, text)
    try:
        file.place(overwrite=overwrite)
    finally:
        file.discard()


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Find out early, before anything is done for the file, that it could not be written.

    Raises:
        SettingError: as ``write_private`` would.
    """
    if path.exists() and not overwrite:
        raise SettingError(f"{path} is there already; give --force to replace it")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingError(f"{path} cannot be written: no folder {str(path.parent)!r} that may be written to")


def read_private(path: Path) -> str:
    """The text of such a file.

    Raises:
        SettingError: it cannot be read, or is far too large to be one.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise SettingError(f"{path} is larger than {MAX_BYTES} bytes: it is something else")
        text = data.decode("utf-8")
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SettingError(f"{path} is no text") from None
    return text


def is_open(path: Path) -> bool:
    """Whether others on this machine may read or change a file that is there."""
    return bool(path.stat().st_mode & 0o077)


def warn_if_open(path: Path) -> None:
    """Log it if a file that turned out to hold a secret is open to others."""
    if is_open(path):
        log.warning("%s holds a secret, and others on this machine may read it: chmod 600 it", path)
