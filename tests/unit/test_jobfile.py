"""Job files: what is read, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_fl.errors import SettingError
from broker_fl.jobfile import make_spec, read_job
from broker_fl.wire.job import JobSpec
from broker_fl.wire.protocols import Synchronous
from broker_fl.wire.selectors import SelectRandom


def write(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(SettingError) as caught:
        read_job(write(folder, text))
    assert str(caught.value).startswith(str(folder / "job.toml"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_empty_file_is_a_job_of_defaults(tmp_path: Path) -> None:
    job = read_job(write(tmp_path, ""))
    assert job.spec == JobSpec()
    assert (job.app, job.model_file, job.given) == (None, None, frozenset())


def test_fields_are_read(tmp_path: Path) -> None:
    text = """
    name = "digits"
    [protocol]
    quorum = 3
    deadline_s = 60
    [selector]
    name = "random"
    fraction = 0.5
    [termination]
    target = { metric = "accuracy", value = 0.9 }
    [parameters]
    epochs = 5
    learning_rate = 0.1
    """
    job = read_job(write(tmp_path, text))
    assert isinstance(job.spec.protocol, Synchronous)
    assert job.spec.protocol.quorum == 3
    assert job.spec.protocol.deadline_s == 60.0
    assert job.spec.selector == SelectRandom(fraction=0.5)
    assert job.spec.termination.target is not None
    assert job.spec.parameters == {"epochs": 5, "learning_rate": 0.1}
    assert {"protocol.quorum", "selector.fraction", "parameters.epochs"} <= job.given


def test_paths_of_the_model_are_relative_to_the_file(tmp_path: Path) -> None:
    assert read_job(write(tmp_path, 'model.file = "m.safetensors"')).model_file == tmp_path / "m.safetensors"
    assert read_job(write(tmp_path, 'model.app = "a.py:make"')).app == f"{tmp_path}/a.py:make"
    assert read_job(write(tmp_path, 'model.app = "package.module:make"')).app == "package.module:make"


def test_all_mistakes_are_told_at_once_with_field_value_and_what_is_allowed(tmp_path: Path) -> None:
    text = """
    evaluate = "yes"
    [protocol]
    quorum = 2.5
    deadline_s = -1
    min_learners = "3"
    [transfer]
    chunk_bytes = 3
    encoding = "zip"
    """
    told = refusal(tmp_path, text)
    assert "protocol.quorum = 2.5 is not allowed: it must be a share at most 1 or a whole number" in told
    assert "protocol.deadline_s = -1 is not allowed: it must be above 0" in told
    assert "protocol.min_learners = '3' is not allowed: it must be a whole number" in told
    assert "transfer.chunk_bytes = 3 is not allowed: it must be at least 4096" in told
    assert (
        "transfer.encoding: 'zip' is not allowed: it must be one of 'raw', 'float32', 'float16', 'bfloat16', "
        "'int8', or 'topk/N' for one element in N, 2 to 1000000" in told
    )
    assert "evaluate = 'yes' is not allowed: it must be true or false" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("protocl = {}", "unknown field 'protocl': did you mean 'protocol'?"),
        ("protocol.deadlin_s = 1", "unknown field 'protocol.deadlin_s': did you mean 'deadline_s'?"),
        ("rounds = 3", "unknown field 'rounds': did you mean 'termination.rounds'?"),
        ("zzz = 3", "unknown field 'zzz': allowed are buffers, evaluate, "),
        (
            'selector = { name = "random", fracton = 0.5 }',
            "unknown field 'selector.fracton': did you mean 'fraction'? allowed are count, ",
        ),
        ('selector.name = "rnd"', "selector.name = 'rnd' is not allowed: it must be one of 'all', 'random'"),
        ("selector.fraction = 0.5", "selector: the field 'name' is missing"),
        ('selector.name = "random"', "selector: give either 'fraction' or 'count'"),
        ('rule = "fedavg"', "rule = 'fedavg' is not allowed: it must be a table with a field 'name'"),
        ('protocol.name = "sync"', "protocol.name = 'sync' is not allowed: it must be one of 'synchronous',"),
        ('name = "a b"', "name: 'a b' must be 1 to 64 letters, digits, '-' or '_'"),
        ("parameters.a = { b = 1 }", "parameters.a: a dict is neither a text"),
        ("parameters.a = nan", "parameters.a: nan is not a finite number"),
        ("[termination]", "termination: give at least one of"),
        ("termination.target = { metric = 'a' }", "termination.target.value is missing"),
        ("[model]", "model: give either 'app' or 'file'"),
        ('model = { app = "a.py", file = "b" }', "model: give either 'app' or 'file'"),
        ('model = "a.py"', "model = 'a.py' is not allowed: it must be a table with app, file"),
        (
            "evaluate = false\ntermination.target = { metric = 'a', value = 1 }",
            "'termination.target' needs 'evaluate' to be true",
        ),
        ("name = ", "is not valid TOML"),
    ],
)
def test_a_mistake_is_told_in_words(tmp_path: Path, text: str, told: str) -> None:
    assert told in refusal(tmp_path, text)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"the job file .* cannot be read: No such file"):
        read_job(tmp_path / "nowhere.toml")


def test_bytes_that_are_not_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(SettingError, match="is not valid TOML"):
        read_job(tmp_path / "job.toml")


def test_settings_that_were_put_together_are_checked_the_same_way() -> None:
    with pytest.raises(SettingError, match=r"the command line: protocol\.min_learners = 0 is not allowed"):
        make_spec({"protocol": {"min_learners": 0}}, "the command line")
