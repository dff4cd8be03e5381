"""What went wrong in the user's code, told in one line that names theirs; the cause is chained."""

from __future__ import annotations

import inspect
import linecache
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from broker_fl.errors import AppError, BrokerFLError

_LIBRARY = (Path(__file__).parent, Path(sysconfig.get_path("stdlib")))
_INSTALL = {
    "jax": "broker-fl[jax]",
    "keras": "broker-fl[tensorflow]",
    "sklearn": "scikit-learn",
    "tensorflow": "broker-fl[tensorflow]",
    "torch": "broker-fl[torch]",
    "xgboost": "broker-fl[xgboost]",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCode:
    """Where the user's code is, so that errors can point into it."""

    name: str
    """As the user called it."""
    root: Path
    """A folder: what lies below is the user's, installed packages excepted. Or one file."""

    @contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turn whatever the user's code raises in this block into an ``AppError``."""
        try:
            yield
        except (Exception, SystemExit) as error:
            raise AppError(self._explain(error, doing)) from error

    def line_of(self, function: Callable[..., object]) -> str:
        """``file:line`` of a function or class, or as much of it as can be found."""
        try:
            file = inspect.getsourcefile(function)
            return f"{self._show(file)}:{inspect.getsourcelines(function)[1]}" if file else self.name
        except (OSError, TypeError):
            return self.name

    def _explain(self, error: BaseException, doing: str) -> str:
        if isinstance(error, SyntaxError):
            at = f"{self._show(error.filename)}:{error.lineno}" if error.filename else self.name
            text = (error.text or "").strip()
            return f"{at}: {type(error).__name__}: {error.msg}" + (f", at: {text}" if text else "")
        where, text = self._innermost(error.__traceback__)
        if isinstance(error, ModuleNotFoundError) and error.name:
            return f"{where}: no module {error.name!r}: {self._how_to_get(error.name)}"
        at = f", at: {text}" if text else ""
        if isinstance(error, SystemExit):
            return f"{where}: {doing} ended the program{at}; put such calls under if __name__ == '__main__':"
        if isinstance(error, BrokerFLError):
            return f"{where}: {error}"
        return f"{where}: {doing} raised {type(error).__name__}: {error}{at}"

    def _how_to_get(self, module: str) -> str:
        package = module.partition(".")[0]
        if package in _INSTALL:
            return f"pip install '{_INSTALL[package]}'"
        beside = f", or put {package}.py beside {self.name}" if self.name.endswith(".py") else ""
        return f"install the package that has it{beside}"

    def _innermost(self, tb: TracebackType | None) -> tuple[str, str]:
        """The last place of the traceback that is the user's, and its source line; else just the file."""
        for frame, line in reversed(list(traceback.walk_tb(tb))):
            file = frame.f_code.co_filename
            if self._is_users(Path(file)):
                return f"{self._show(file)}:{line}", linecache.getline(file, line).strip()
        return self.name, ""

    def _is_users(self, file: Path) -> bool:
        if not file.is_relative_to(self.root) or any(file.is_relative_to(folder) for folder in _LIBRARY):
            return False
        return not {"site-packages", "dist-packages"} & set(file.relative_to(self.root).parts)

    def _show(self, file: str) -> str:
        path = Path(file)
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
