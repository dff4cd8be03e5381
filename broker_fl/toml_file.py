"""Files of settings: TOML, read whole, with errors that say what is wrong with which file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from broker_fl.errors import SettingError


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """What stands in a file; ``what`` it is, for the error.

    Raises:
        SettingError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"the {what} {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # no UTF-8, no TOML, or a number of thousands of digits
        raise SettingError(f"{path} is not valid TOML: {error}") from error
    except RecursionError:
        raise SettingError(f"{path} is no {what}: its values are nested too deeply") from None
