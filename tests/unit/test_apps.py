from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from broker_fl.apps import load_app
from broker_fl.errors import AppError
from broker_fl.frameworks import LocalTask
from broker_fl.interfaces import Learner, LearnerContext

Write = Callable[..., Path]

FUNCTIONS = """
    from broker_fl import Update

    def train(model, task):
        return Update(model={"x": model["x"] + 1}, num_examples=3)

    def evaluate(model, task):
        return {"mean": float(model["x"].mean())}
"""
CLASS = """
    class Adder:
        def train(self, model, task): ...
        def evaluate(self, model, task): ...
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write source files into a folder that is the working directory; forget all that was imported."""
    path, modules = list(sys.path), dict(sys.modules)
    monkeypatch.chdir(tmp_path)

    def write(source: str, name: str = "my_app.py") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(source), encoding="utf-8")
        return file

    yield write
    sys.path[:] = path
    for name in sys.modules.keys() - modules.keys():
        del sys.modules[name]


def refusal(target: str, context: LearnerContext | None = None) -> str:
    """What the user is told when the app cannot be loaded, or (with a context) cannot make a learner."""
    with pytest.raises(AppError) as caught:
        load_app(target).make(context or LearnerContext(learner="a"))
    return str(caught.value)


# ---------------------------------------------------------------- what is taken


def test_a_file_with_two_functions_is_an_app(write: Write) -> None:
    write(FUNCTIONS)
    learner = load_app("my_app.py").make(LearnerContext(learner="a"))
    update = learner.train({"x": np.zeros(2)}, LocalTask())
    assert isinstance(learner, Learner)
    assert learner.evaluate(update.model, LocalTask()) == {"mean": 1.0}


@pytest.mark.parametrize(
    "factory",
    [
        "def make_learner(): return Adder()",
        "make_learner = Adder",
        "make_learner = lambda *args, seed=3: Adder()",
    ],
)
def test_a_factory_is_a_function_or_a_class(write: Write, factory: str) -> None:
    write(CLASS + "\n    " + factory)
    assert type(load_app("my_app.py").make(LearnerContext(learner="a"))).__name__ == "Adder"


@pytest.mark.parametrize("parameter", ["context", "context=None", "anything", "anything, seed=3"])
def test_the_context_is_given_to_a_factory_that_asks_for_it(write: Write, parameter: str) -> None:
    name = parameter.split(",", maxsplit=1)[0].split("=", maxsplit=1)[0]
    write(
        f"""
        class Adder:
            def train(self, model, task): ...
            def evaluate(self, model, task): ...

        def make({parameter}):
            learner = Adder()
            learner.context = {name}
            return learner
        """
    )
    context = LearnerContext(learner="a", index=2, count=3)
    assert load_app("my_app.py:make").make(context).context is context  # type: ignore[attr-defined]


def test_a_default_that_is_not_called_context_stays(write: Write) -> None:
    write(
        """
        class make:
            def __init__(self, seed=3): self.seed = seed
            def train(self, model, task): ...
            def evaluate(self, model, task): ...
        """
    )
    assert load_app("my_app.py:make").make(LearnerContext(learner="a")).seed == 3  # type: ignore[attr-defined]


def test_a_factory_may_return_a_pair_of_functions(write: Write) -> None:
    write(FUNCTIONS + "\n    def make_learner(): return train, evaluate")
    learner = load_app("my_app.py:make_learner").make(LearnerContext(learner="a"))
    assert learner.evaluate({"x": np.ones(2)}, LocalTask()) == {"mean": 1.0}


def test_a_module_of_a_package_below_the_working_directory_is_an_app(write: Write) -> None:
    write("", "package/__init__.py")
    write(FUNCTIONS, "package/module.py")
    assert load_app("package.module").factory_name == "train and evaluate"


def test_siblings_of_the_file_can_be_imported_also_later_and_from_anywhere(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("VALUE = 1", "sibling.py")
    write("VALUE = 2", "late.py")
    file = write(
        """
        import sibling

        def make_learner():
            import late
            return lambda model, task: sibling.VALUE, lambda model, task: late.VALUE
        """
    )
    monkeypatch.chdir("/")
    learner = load_app(f"{file}:make_learner").make(LearnerContext(learner="a"))
    values: list[object] = [learner.train({}, LocalTask()), learner.evaluate({}, LocalTask())]
    assert values == [1, 2]


def test_two_apps_with_equal_file_names_and_siblings_do_not_clash(write: Write) -> None:
    for folder in ("one", "two"):
        write(f"NAME = '{folder}'", f"{folder}/sibling.py")
        write(
            CLASS + "\n    import sibling\n    NAME = sibling.NAME\n    make_learner = Adder",
            f"{folder}/my_app.py",
        )
    one, two = load_app("one/my_app.py"), load_app("two/my_app.py")
    assert [app.module.NAME for app in (one, two)] == ["one", "two"]
    assert type(one.make(LearnerContext(learner="a"))) is one.module.Adder


def test_a_file_changed_on_disk_is_loaded_anew_even_within_a_second(write: Write) -> None:
    times = set()
    for value in (1, 2, 3):
        sibling = write(f"VALUE = {value}", "sibling.py")
        file = write(FUNCTIONS + f"\n    import sibling\n    total = {value} * 10 + sibling.VALUE")
        os.utime(file, (1e9, 1e9))
        os.utime(sibling, (1e9 + value, 1e9 + value))
        times.add(file.stat().st_mtime)
        assert load_app("my_app.py").module.total == value * 11
    assert len(times) == 1


def test_what_an_app_defines_can_be_pickled_while_it_is_loaded(write: Write) -> None:
    write(CLASS + "\n    make_learner = Adder")
    learner = load_app("my_app.py").make(LearnerContext(learner="a"))
    assert type(pickle.loads(pickle.dumps(learner))) is type(learner)


# ---------------------------------------------------------------- the initial model


def test_the_initial_model_is_the_modules(write: Write) -> None:
    write(FUNCTIONS + "\n    import numpy\n    def initial_model(): return {'x': numpy.zeros((2, 3))}")
    model = load_app("my_app.py").initial_model()
    assert model["x"].shape == (2, 3)


def test_the_initial_model_is_a_learners_where_the_module_has_none(write: Write) -> None:
    write(
        """
        import numpy

        class make_learner:
            def initial_model(self): return {"x": numpy.ones(2)}
            def train(self, model, task): ...
            def evaluate(self, model, task): ...
        """
    )
    assert load_app("my_app.py").initial_model()["x"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "my_app.py has no initial model: add a function initial_model()"),
        (
            "def initial_model(): return [1]",
            "my_app.py: initial_model() returned a list; it returns a dict of numpy arrays",
        ),
        ("def initial_model(): return {}", "my_app.py: initial_model() returned no arrays"),
        (
            "def initial_model(): return {'x': 'abc'}",
            "my_app.py: initial_model(): tensor 'x': element type <U3",
        ),
        ("def initial_model(): return 1 / 0", "my_app.py:10: initial_model() raised ZeroDivisionError"),
    ],
)
def test_a_wrong_initial_model_is_explained(write: Write, source: str, message: str) -> None:
    write(FUNCTIONS + "\n" + "    " + source)
    with pytest.raises(AppError) as caught:
        load_app("my_app.py").initial_model()
    assert str(caught.value).startswith(message)


# ---------------------------------------------------------------- the user's mistakes


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "'' is not an app: name it FILE.py:FACTORY"),
        (":make", "':make' is not an app"),
        ("my_app.py:", "'my_app.py:' is not an app"),
        ("my_app.py:a.b", "'my_app.py:a.b' is not an app"),
        ("a:b:c", "'a:b:c' is not an app"),
        ("folder/my_app", "folder/my_app is not a Python file"),
        ("missing.py", "missing.py: no such file; "),
        ("folder/missing.py", "folder/missing.py: no such file (there is no folder "),
        ("missing.module:make", "no module 'missing.module': it is neither installed nor under "),
        ("my_app.deeper:make", "no module 'my_app.deeper': it is neither installed nor under "),
        ("my_app.py:make_leaner", "my_app.py has no make_leaner; it defines train, evaluate"),
        ("my_app.py:number", "my_app.py: number is a int; name what makes a learner"),
    ],
)
def test_a_wrong_target_is_explained(write: Write, target: str, message: str) -> None:
    write(FUNCTIONS + "\n    number = 3")
    assert refusal(target).startswith(message)


def test_a_missing_file_is_told_with_those_that_are_there(write: Write) -> None:
    write("", "there.py")
    assert refusal("missing.py").endswith("has there.py")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ndef f(:\n    pass", "my_app.py:2: SyntaxError: invalid syntax, at: def f(:"),
        ("def f():\nx = 1", "my_app.py:2: IndentationError: expected an indented block"),
        ("x = 'a\0b'", "my_app.py"),
        (
            "import torchh",
            "my_app.py:1: no module 'torchh': install the package that has it, or put torchh.py beside",
        ),
        (
            "import os\nfrom os import nothing",
            "my_app.py:2: loading it raised ImportError: cannot import name 'noth",
        ),
        (
            "x = 1\n\ny = x / 0",
            "my_app.py:3: loading it raised ZeroDivisionError: division by zero, at: y = x / 0",
        ),
        ("import json\njson.loads('{')", "my_app.py:2: loading it raised JSONDecodeError"),
        (
            "import sys\nsys.exit(1)",
            "my_app.py:2: loading it ended the program, at: sys.exit(1); put such calls",
        ),
        ("", "my_app.py has no make_learner, nor train and evaluate; it defines no function or class"),
        (
            "def train(model, task): ...",
            "my_app.py has no make_learner, nor train and evaluate; it defines train",
        ),
        (
            "def train(model): ...\ndef evaluate(model, task): ...",
            "my_app.py:1: train(model) cannot be called as train(model, task)",
        ),
        (
            "async def train(model, task): ...\ndef evaluate(model, task): ...",
            "my_app.py:1: train is async; make it a plain function",
        ),
        (
            "def make_learner():\n    return {}['x']",
            "my_app.py:2: make_learner() raised KeyError: 'x', at: return {}['x",
        ),
        ("def make_learner(): pass", "my_app.py:1: make_learner returned nothing; is a 'return' missing?"),
        (
            "def make_learner(): return 3",
            "my_app.py:1: make_learner returned a int, which has no train; a learner has",
        ),
        (
            "class A: ...\ndef make_learner(): return A",
            "my_app.py:2: make_learner returned the class A; return an inst",
        ),
        (
            "def make_learner(a, b): ...",
            "my_app.py:1: make_learner needs a, b; it may be a function or class that tak",
        ),
        ("def make_learner(*, a): ...", "my_app.py:1: make_learner needs a; it may be"),
        (
            "class make_learner:\n    def train(self, model, task): ...",
            "my_app.py:1: make_learner returned a make_learner, which has no evaluate",
        ),
        (
            "class make_learner:\n    def train(self, model, task): ...\n    def evaluate(model, task): ...",
            "my_app.py:3: evaluate(task) cannot be called as evaluate(model, task)",
        ),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_line(write: Write, source: str, message: str) -> None:
    write(source)
    assert refusal("my_app.py").startswith(message)


def test_a_mistake_in_a_sibling_is_told_with_the_siblings_line(write: Write) -> None:
    write("\n\n1 / 0", "sibling.py")
    write("import sibling")
    assert refusal("my_app.py").startswith("sibling.py:3: loading it raised ZeroDivisionError")


def test_a_module_that_lacks_a_package_is_not_taken_for_missing_itself(write: Write) -> None:
    write("import package.nothing", "package/__init__.py")
    assert refusal("package:make").startswith("package/__init__.py:1: no module 'package.nothing'")
    write("import nothing_of_this_name", "other.py")
    assert refusal("other:make").startswith("other.py:1: no module 'nothing_of_this_name'")


def test_the_cause_stays_with_the_error(write: Write) -> None:
    write("1 / 0")
    with pytest.raises(AppError) as caught:
        load_app("my_app.py")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_file_that_failed_can_be_mended_and_loaded(write: Write) -> None:
    write("1 / 0")
    refusal("my_app.py")
    write(FUNCTIONS)
    load_app("my_app.py")


def test_a_missing_framework_is_told_with_the_extra_to_install(write: Write) -> None:
    write("import torch", "my_app.py")
    write("from broker_fl.frameworks.torch import TorchLearner", "other.py")
    program = """
import sys
sys.modules["torch"] = None
sys.meta_path.insert(0, type("Missing", (), {"find_spec": staticmethod(lambda name, *_: missing(name))}))
def missing(name):
    if name == "torch":
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
del sys.modules["torch"]
from broker_fl.apps import load_app
for target in ("my_app.py", "other.py"):
    try:
        load_app(target)
    except Exception as error:
        print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.stdout.splitlines() == [
        "AppError my_app.py:1: no module 'torch': pip install 'broker-fl[torch]'",
        "AppError other.py:1: PyTorch is not installed: pip install 'broker-fl[torch]'",
    ], done.stderr


def test_loading_an_app_imports_no_framework(write: Write) -> None:
    write(FUNCTIONS)
    program = (
        "import sys; from broker_fl.apps import load_app; load_app('my_app.py'); import broker_fl.frameworks;"
        "heavy = {'torch', 'tensorflow', 'keras', 'sklearn', 'jax', 'xgboost', 'pika', 'redis'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
