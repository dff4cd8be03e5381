"""What commands say where something is not as they need it, and where they keep what they do."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509

from broker_fl.cli.tables import print_table
from broker_fl.security.audit import Deed, FileLog
from tests.unit.cli.calling import call


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """An operator's audit log that is not where it is by default."""
    path = tmp_path / "elsewhere.jsonl"
    FileLog(path, "f").append(Deed(actor="admin", action="enroll", subject="account f.learner.a"))
    return path


def test_the_own_audit_log_is_read_where_it_was_written(elsewhere: Path) -> None:
    show = ("audit", "show", "--federation", "f")
    for done in (
        call(*show, "--file", "own", BROKER_FL_AUDIT=str(elsewhere)),
        call(*show, "--audit", str(elsewhere)),
        call(*show, "--file", str(elsewhere), BROKER_FL_AUDIT="other.jsonl"),
    ):
        assert done.exit_code == 0, done.output
        assert "account f.learner.a" in done.output


def test_a_file_that_is_no_audit_log_is_told_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('name = "digits"\n')
    done = call("audit", "verify", "--file", str(tmp_path / "job.toml"))
    assert done.exit_code == 1
    assert """the line that begins with 'name = "digits"' is no entry""" in done.stderr


def test_what_is_no_certificate_request_is_named(tmp_path: Path) -> None:
    folder, app = str(tmp_path / "ca"), tmp_path / "app.py"
    app.write_text("import numpy\n")
    assert call("ca", "init", "--folder", folder).exit_code == 0
    done = call("ca", "client", "f.learner.a", "--folder", folder, "--request", str(app))
    assert done.exit_code == 2
    assert f"{app} is no certificate request in PEM" in done.stderr
    app.write_text("-----BEGIN CERTIFICATE REQUEST-----\nnonsense\n-----END CERTIFICATE REQUEST-----\n")
    done = call("ca", "client", "f.learner.a", "--folder", folder, "--request", str(app))
    assert "no usable certificate request" in done.stderr


def test_a_certificate_that_opens_an_account_is_written_down(tmp_path: Path) -> None:
    """One for somebody else's server opens none."""
    folder, log = str(tmp_path / "ca"), str(tmp_path / "audit.jsonl")
    assert call("ca", "init", "--folder", folder).exit_code == 0
    for name in ("a-server-of-ours", "f.learner.a"):
        assert call("ca", "client", name, "--folder", folder, "--audit", log).exit_code == 0
    assert call("ca", "client", "f.learner.a", "--folder", folder, "--audit", log).exit_code == 2
    shown = call("audit", "show", "--federation", "f", "--file", log, "--json")
    first, done, again, refused = json.loads(shown.stdout)
    assert (first["action"], first["subject"]) == ("certify", "account f.learner.a")
    made = x509.load_pem_x509_certificate((tmp_path / "ca" / "f.learner.a.pem").read_bytes())
    assert (done["details"]["outcome"], int(done["details"]["serial"], 16)) == ("done", made.serial_number)
    assert refused["details"]["of_entry"] == again["sequence"]
    assert "there already" in refused["details"]["outcome"]
    table = call("audit", "show", "--federation", "f", "--file", log).stdout
    words = [[line.split()[index] for index in (0, 4, 5)] for line in table.splitlines() if "certify" in line]
    assert words == [[str(n), "certify", f"({what})"] for n, what in enumerate(["begun", "ended"] * 2, 1)]


def test_of_an_empty_audit_log_no_empty_table_is_shown(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    shown = call("audit", "show", "--federation", "f", "--file", str(tmp_path / "empty.jsonl"))
    assert not shown.stdout
    assert "nothing of federation 'f' is written down" in shown.stderr


@contextmanager
def amqp_port() -> Iterator[int]:
    """What RabbitMQ's port for AMQP says to everything else: the versions that it speaks."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                client, _ = server.accept()
                with client:
                    if not client.recv(65_536):  # all of it: a close with some unread would be a reset
                        return
                    client.sendall(b"AMQP\x00\x00\x09\x01")

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        socket.create_connection(server.getsockname()).close()
        thread.join()


@pytest.mark.parametrize(("scheme", "right"), [("http", "15672"), ("https", "15671")])
def test_management_at_the_port_for_amqp_is_told_where_it_should_be(scheme: str, right: str) -> None:
    with amqp_port() as port:
        url = f"{scheme}://admin@127.0.0.1:{port}"
        done = call("members", "--management", url, BROKER_FL_MANAGEMENT_PASSWORD="secret-secret")
    assert done.exit_code == 2
    assert done.stderr.count(f"does not speak {scheme.upper()}") == 1
    assert f"not at the port for AMQP, but at one of its own, mostly {right}" in done.stderr


@pytest.mark.parametrize("command", [("members",), ("enroll", "site-1")])
def test_where_there_is_no_management_interface_it_is_named_with_its_setting(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobodys = server.getsockname()[1]
    log, place = str(tmp_path / "audit.jsonl"), f"http://127.0.0.1:{nobodys}"
    done = call(*command, BROKER_FL_MANAGEMENT=place.replace("://", "://guest@"), BROKER_FL_AUDIT=log)
    assert done.exit_code == 3
    for words in (
        f"{place}: nothing listens there",
        "BROKER_FL_MANAGEMENT",
        "rabbitmq_management",
        "up` has",
    ):
        assert words in done.stderr
    assert "Errno" not in done.stderr


def test_a_folder_is_no_app() -> None:
    for target in (".", "..", ".app"):
        done = call("run", target)
        assert done.exit_code == 2, done.output
        assert "is a folder, or no module: name it FILE.py:FACTORY" in done.stderr


def test_down_says_what_it_did(tmp_path: Path) -> None:
    assert "there is no folder" in call("down", "--folder", str(tmp_path / "nope")).output
    done = call("down", "--folder", str(tmp_path))
    assert f"no processes ended; data and logs stay in {tmp_path}" in done.output


def test_a_store_of_plain_text_with_tls_files_names_its_option() -> None:
    done = call("controller", "--store-tls-ca", "ca.pem", "--connect-timeout", "0.1")
    assert done.exit_code == 2
    assert "its URL (--store) must begin with rediss://" in done.stderr


def test_a_table_on_a_pipe_breaks_long_words_and_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a" * 64
    print_table(("job", "why"), [(name, "a learner was lost; " * 20)])
    lines = capsys.readouterr().out.splitlines()
    assert sum(name in line for line in lines) == 1
    assert max(map(len, lines)) <= 2 * (64 + 3)
    assert "".join(lines).count("lost;") == 20


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_no_id_is_broken_and_a_reason_is_whole(width: int) -> None:
    job, why = (
        "digits-20261123-202642-3f9a2c",
        "round 3 failed: " + "site-7 has no column named weight; " * 20,
    )
    code = (
        "from broker_fl.cli.tables import print_table, when; "
        f"print_table(('job', 'state', 'submitted', 'why'), [({job!r}, 'failed', when(1.79e9), {why!r}), "
        "('b', 'done', when(0), '')], last_below=True)"
    )
    shown = _on_a_terminal(code, width)
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count(job) == 2
    assert "2026-09-21 14:13:20Z" in shown
    assert " ".join(shown.split()).count("site-7 has no column named weight;") == 20


@pytest.mark.parametrize(("width", "num_lines"), [(80, 1 + 2 + 2), (120, 1 + 2)])
def test_sentences_are_beside_the_table_where_they_fit(width: int, num_lines: int) -> None:
    code = (
        "from broker_fl.cli.tables import print_table; metrics = 'accuracy 0.9312, loss 0.2211'; "
        "rows = [(one, '101 770', '407 kB', '2026-09-21 14:13:20Z', 'f' * 12, metrics) for one in '12']; "
        "columns = ('version', 'parameters', 'size', 'committed', 'digest', 'metrics'); "
        "print_table(columns, rows, last_below=True)"
    )
    lines = [line for line in _on_a_terminal(code, width).splitlines() if line.strip(" ─")]
    assert len(lines) == num_lines
    assert sum("accuracy 0.9312, loss 0.2211" in line for line in lines) == 2


def _on_a_terminal(code: str, width: int) -> str:
    """What Python shows on a real one: what rich takes for one is not what a test sets in its place."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (50, width))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"TZ": "America/New_York", "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env=environment) as process:
        os.close(theirs)
        shown = _all_of(ours).decode()
    os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


def _all_of(terminal: int) -> bytes:
    """What was written to it; that nobody has it open any more is told as an error."""
    found = b""
    with suppress(OSError):
        while piece := os.read(terminal, 65_536):
            found += piece
    return found
