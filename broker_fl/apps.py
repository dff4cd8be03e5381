"""The user's app: find its file, load it, make learners of it. A mistake in it becomes a clear ``AppError``.

A target is ``my_app.py:make_learner``, ``package.module:make_learner`` or ``my_app.py`` alone; the last has a
factory called ``make_learner``, or the two functions ``train`` and ``evaluate``.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import linecache
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import cast

from broker_fl.app_errors import UserCode
from broker_fl.errors import AppError
from broker_fl.frameworks.functions import FunctionLearner
from broker_fl.interfaces import Learner, LearnerContext
from broker_fl.model import Model, ModelError

DEFAULT_FACTORY = "make_learner"
_HOW = "name it FILE.py:FACTORY, package.module:FACTORY, or FILE.py"
_MAKER = "a function or class that takes nothing, or one argument, the LearnerContext"
_LEARNER = "a learner has train(model, task) and evaluate(model, task)"

Factory = Callable[..., object]

_loading = threading.RLock()  # sys.path and sys.modules are the process's own
_first_seen: dict[Path, frozenset[str]] = {}  # an app's folder → what was loaded before it was first used


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An app file that is loaded. Nothing of it has been made yet."""

    target: str
    module: ModuleType
    """Whatever else the file offers is found here."""
    factory_name: str
    factory: Factory
    code: UserCode

    def make(self, context: LearnerContext) -> Learner:
        """Call the factory.

        Raises:
            AppError: it raises, or what it returns is not a learner.
        """
        arguments = _arguments(self, context)
        with self.code.explained(f"{self.factory_name}()"):
            made = self.factory(*arguments)
        return _as_learner(self, made)

    def initial_model(self) -> Model:
        """What a job starts from: the module's ``initial_model()``, else that of a learner made for this.

        Raises:
            AppError: there is neither, it raises, or what it returns is not a model.
        """
        source, where = getattr(self.module, "initial_model", None), f"{self.code.name}: initial_model()"
        if not callable(source):
            learner = self.make(LearnerContext(learner="initial-model"))
            source = getattr(learner, "initial_model", None)
            where = f"{self.code.line_of(self.factory)}: initial_model() of the learner"
        if not callable(source):
            raise AppError(
                f"{self.code.name} has no initial model: add a function initial_model() that returns a "
                f"dict of numpy arrays, or a method of that name to the learner"
            )
        with self.code.explained("initial_model()"):
            arrays = source()
        return _as_model(arrays, where)


def load_app(target: str) -> App:
    """Load an app, anew if it is a file, whatever was loaded before under that name.

    The file's folder can be imported from, as when Python runs the file.

    Raises:
        AppError: there is no such file, module or factory, or loading it fails.
    """
    module, code = load_module(target)
    factory_name, factory = _factory(module, code, target.partition(":")[2])
    return App(target=target, module=module, factory_name=factory_name, factory=factory, code=code)


def load_module(target: str) -> tuple[ModuleType, UserCode]:
    """Load an app as ``load_app`` does, whether or not it makes learners.

    Raises:
        AppError: there is no such file or module, or loading it fails.
    """
    place, _, name = target.partition(":")
    if not place or ":" in name or (":" in target and not name.isidentifier()):
        raise AppError(f"{target!r} is not an app: {_HOW}")
    if place.endswith(".py") or "/" in place:
        return _load_file(place)
    if place.startswith("."):  # a relative import, to Python
        raise AppError(f"{place} is a folder, or no module: {_HOW}")
    return _import_module(place)


# ---------------------------------------------------------------- loading


class _FreshLoader(SourceFileLoader):
    """Compiles what the file holds now: cached bytecode is recognised by whole seconds and size only."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _load_file(place: str) -> tuple[ModuleType, UserCode]:
    path = Path(place).expanduser().resolve()
    code = UserCode(name=place, root=path.parent)
    if path.suffix != ".py":
        raise AppError(f"{place} is not a Python file: {_HOW}")
    if not path.is_file():
        raise AppError(f"{place}: no such file{_nearby(path)}")
    name = f"broker_fl_app_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_FreshLoader(name, str(path)))
    if spec is None or spec.loader is None:
        raise AppError(f"{place} is not a Python file: {_HOW}")
    module = importlib.util.module_from_spec(spec)
    with _importable(path.parent), code.explained("loading it"):
        linecache.checkcache(str(path))
        sys.modules[name] = module  # dataclasses and pickle look it up there
        spec.loader.exec_module(module)
    return module, code


def _import_module(place: str) -> tuple[ModuleType, UserCode]:
    folder = Path.cwd()
    try:
        with _importable(folder), UserCode(name=place, root=folder).explained("importing it"):
            module = importlib.import_module(place)
    except AppError as error:
        cause = error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing is None or not f"{place}.".startswith(f"{missing}."):
            raise
        raise AppError(f"no module {place!r}: it is neither installed nor under {folder}") from cause
    top = sys.modules[place.partition(".")[0]]
    path = Path(top.__file__).resolve() if top.__file__ else folder
    return module, UserCode(name=place, root=path.parent if path.name == "__init__.py" else path)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put ``folder`` first in the search path; afterwards last, for what the app imports while it works."""
    entry = str(folder)
    with _loading:
        _first_seen.setdefault(folder, frozenset(sys.modules))
        _forget_siblings()
        sys.path.insert(0, entry)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(entry)
            if entry not in sys.path:
                sys.path.append(entry)


def _forget_siblings() -> None:
    """Drop what earlier apps imported from beside them: it may be another app's, or have changed."""
    for folder, before in _first_seen.items():
        for name, module in list(sys.modules.items()):
            if name not in before and _lies_in(folder, name.partition(".")[0], module):
                del sys.modules[name]


def _lies_in(folder: Path, top: str, module: ModuleType) -> bool:
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if file is None or top == "broker_fl" or not Path(file).is_relative_to(folder):
        return False
    return Path(file).relative_to(folder).parts[:1] in {(top,), (f"{top}.py",)}


def _nearby(path: Path) -> str:
    found = sorted(file.name for file in path.parent.glob("*.py")) if path.parent.is_dir() else []
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    return f"; {path.parent} has {', '.join(found[:10])}" if found else f"; {path.parent} has no .py files"


# ---------------------------------------------------------------- the factory and what it makes


def _factory(module: ModuleType, code: UserCode, name: str) -> tuple[str, Factory]:
    wanted = name or DEFAULT_FACTORY
    found = getattr(module, wanted, None)
    if callable(found):
        return wanted, found
    if found is not None:
        raise AppError(
            f"{code.name}: {wanted} is a {type(found).__name__}; name what makes a learner: {_MAKER}"
        )
    train, evaluate = getattr(module, "train", None), getattr(module, "evaluate", None)
    if not name and callable(train) and callable(evaluate):
        return "train and evaluate", lambda: (train, evaluate)
    own = [key for key, value in vars(module).items() if callable(value) and _is_defined_in(module, value)]
    there = f"it defines {', '.join(own)}" if own else "it defines no function or class"
    raise AppError(f"{code.name} has no {name or 'make_learner, nor train and evaluate'}; {there}")


def _is_defined_in(module: ModuleType, value: object) -> bool:
    return getattr(value, "__module__", None) == module.__name__


def _arguments(app: App, context: LearnerContext) -> tuple[LearnerContext, ...]:
    """The context, if the factory must have one argument, or has one called ``context``; else nothing."""
    try:
        parameters = list(inspect.signature(app.factory).parameters.values())
    except ValueError:  # some built-in callables have no signature
        return ()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    first = next((p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)), None)
    if required == [first] or (not required and first == "context"):
        return (context,)
    if required:
        where = f"{app.code.line_of(app.factory)}: {app.factory_name}"
        raise AppError(f"{where} needs {', '.join(required)}; it may be {_MAKER}")
    return ()


def _as_learner(app: App, made: object) -> Learner:
    if isinstance(made, tuple) and len(made) == 2 and all(callable(part) for part in made):
        for method, function in zip(("train", "evaluate"), made, strict=True):
            _check_method(app.code, method, function)
        return FunctionLearner(*made)
    where = f"{app.code.line_of(app.factory)}: {app.factory_name}"
    if made is None:
        raise AppError(f"{where} returned nothing; is a 'return' missing? {_LEARNER}")
    if isinstance(made, type):
        raise AppError(
            f"{where} returned the class {made.__name__}; return an instance of it, {made.__name__}(…)"
        )
    for method in ("train", "evaluate"):
        function = getattr(made, method, None)
        if not callable(function):
            raise AppError(f"{where} returned a {type(made).__name__}, which has no {method}; {_LEARNER}")
        _check_method(app.code, method, function)
    return cast("Learner", made)


def _check_method(code: UserCode, method: str, function: Callable[..., object]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in callables have no signature
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise AppError(
            f"{code.line_of(function)}: {method}{signature} cannot be called as {method}(model, task)"
        ) from error
    if inspect.iscoroutinefunction(function):
        raise AppError(f"{code.line_of(function)}: {method} is async; make it a plain function")


def _as_model(arrays: object, where: str) -> Model:
    if not isinstance(arrays, Mapping):
        raise AppError(
            f"{where} returned a {type(arrays).__name__}; it returns a dict of numpy arrays by name"
        )
    if not arrays:
        raise AppError(f"{where} returned no arrays")
    try:
        return Model.of(arrays)
    except ModelError as error:
        raise AppError(f"{where}: {error}") from error
