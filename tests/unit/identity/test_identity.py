"""The pure parts of identities: names, permissions, passwords, files, limits."""

from __future__ import annotations

import base64
import hashlib
import re
import stat
from pathlib import Path
from queue import SimpleQueue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_fl.errors import FrameRefused, RequestRefused, SettingError
from broker_fl.identity.accounts import ROLES, Account, Role
from broker_fl.identity.joinfile import JoinFile, read_join_file, without_account
from broker_fl.identity.passwords import hashed, is_hash, new_password
from broker_fl.identity.permissions import permissions_of
from broker_fl.identity.private_file import write_private
from broker_fl.interfaces import Delivery
from broker_fl.roles.controller.limits import Rate, RateLimit
from broker_fl.roles.controller.speakers import DRIVERS, LEARNERS, Speakers
from broker_fl.topology import Topology
from broker_fl.transports.memory import MemoryBroker
from broker_fl.wire import messages as m

F = Topology("F")
IDS = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)
HEX = "0123456789ab"


def account(role: Role, name: str) -> Account:
    return Account.new("F", role, name)


# ---------------------------------------------------------------- names


@given(federation=IDS, role=st.sampled_from(ROLES), name=IDS)
def test_a_user_and_its_account_say_the_same(federation: str, role: Role, name: str) -> None:
    made = Account.new(federation, role, name)
    assert Account.of(made.user) == made


@pytest.mark.parametrize(
    "user", ["", "guest", "F.learner", "F.king.a", "F.learner.a.b", "F..a", "F.learner.ä", None]
)
def test_other_users_are_no_accounts(user: str | None) -> None:
    assert Account.of(user) is None


def test_a_driver_speaks_for_its_own_ids_only() -> None:
    ana = account("driver", "ana")
    assert ana.speaks_for(f"ana-{HEX}")
    for other in ("ana", f"ana-maria-{HEX}", f"anna-{HEX}", f"ana-{HEX}-{HEX}", "ana-zzzzzzzzzzzz"):
        assert not ana.speaks_for(other)


def test_a_groups_members_are_numbered() -> None:
    site = account("group", "site")
    assert site.has_member("site-0")
    assert not any(site.has_member(one) for one in ("site", "site-a", "other-0", "site-1-2"))
    assert not account("learner", "site").has_member("site-0")


# ---------------------------------------------------------------- permissions


@given(name=IDS, other=IDS)
def test_no_name_brings_a_learner_to_anothers_mailbox_or_keys(name: str, other: str) -> None:
    mine = permissions_of(account("learner", name))
    assert re.search(mine.read, F.mailbox(name))
    assert re.search(mine.read, F.mailbox(name, 2))
    assert re.search(mine.topics[F.updates].write, f"{name}.inbox")
    if other != name:
        assert not any(re.search(mine.read, F.mailbox(other, generation)) for generation in (0, 1))
        assert not re.search(mine.topics[F.reports].write, f"{other}.join")
    assert not re.search(mine.configure, F.mailbox(name))


@given(name=IDS, other=IDS)
def test_no_name_brings_a_driver_to_anothers_queues(name: str, other: str) -> None:
    mine = permissions_of(account("driver", name))
    queue, events = F.driver_queue(f"{name}-{HEX}"), F.event_queue(f"{name}-{HEX}-{HEX[:8]}")
    for expression in (mine.configure, mine.write, mine.read):
        assert re.search(expression, queue)
        assert re.search(expression, events)
        for theirs in (F.mailbox(other), F.tasks, F.reports, F.inbox(other), F.dead):
            assert not re.search(expression, theirs)
        if other != name:
            assert not re.search(expression, F.driver_queue(f"{other}-{HEX}"))


def test_an_observer_sends_no_model_and_a_controller_reads_no_mail() -> None:
    assert not re.search(permissions_of(account("observer", "o")).write, F.updates)
    controller = permissions_of(account("controller", "c"))
    assert not re.search(controller.read, F.mailbox("site"))
    assert not re.search(controller.configure, Topology("G").tasks)
    assert re.search(controller.configure, F.inbox("controller-1"))
    assert re.search(controller.configure, F.mailbox("site", 1))


# ---------------------------------------------------------------- passwords and files


def test_a_hash_is_what_rabbitmq_computes() -> None:
    """From RabbitMQ's documentation: the salt 908D C60A and the password test12."""
    salt = bytes.fromhex("908DC60A")
    assert hashed("test12", salt) == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
    assert base64.b64decode(hashed("x", salt))[4:] == hashlib.sha256(salt + b"x").digest()
    assert is_hash(hashed(new_password()))
    assert not any(is_hash(text) for text in ("", "plain", base64.b64encode(b"x" * 35).decode()))


def joining(**fields: object) -> JoinFile:
    given = {
        "federation": "F",
        "role": "learner",
        "name": "hospital-a",
        "broker": "amqps://one.example.org,two.example.org:443/fl",
        "password": "a/b@c:d",
        "ca": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "keys": ("k1", 'k"2'),
    }
    return JoinFile.model_validate(given | fields)


def test_a_join_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path, file = tmp_path / "a.join", joining()
    file.write(path)
    assert read_join_file(path) == file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert file.url == "amqps://F.learner.hospital-a:a%2Fb%40c%3Ad@one.example.org,two.example.org:443/fl"
    assert "a/b@c:d" not in repr(file)
    with pytest.raises(SettingError, match="there already"):
        joining(name="b").write(path)
    joining(name="b").write(path, overwrite=True)
    assert read_join_file(path).name == "b"
    assert [one.name for one in tmp_path.iterdir()] == ["a.join"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "its format is None"),
        ("format = 2", "its format is 2"),
        ("format = [", "not valid TOML"),
        ("format = 1", "federation"),
        ("\x00", "not valid TOML"),
        ("x = " + "[" * 5_000, "not valid TOML"),
    ],
)
def test_what_is_no_join_file_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.join"
    write_private(path, text)
    with pytest.raises(SettingError, match=re.escape(str(path))) as refused:
        read_join_file(path)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"password": None},
        {"certificate": "c.pem"},
        {"name": "a.b"},
        {"broker": "amqps://u:p@h/"},
        {"role": "king"},
    ],
)
def test_a_join_file_that_contradicts_itself_is_refused_and_its_secret_not_shown(
    tmp_path: Path, wrong: dict[str, str]
) -> None:
    path = tmp_path / "a.join"
    joining().write(path)
    lines = [line for line in path.read_text().splitlines() if line.partition(" =")[0] not in wrong]
    lines += [f'{name} = "{value}"' for name, value in wrong.items() if value]
    path.write_text("\n".join(lines))
    with pytest.raises(SettingError, match="is no join file") as refused:
        read_join_file(path)
    assert "a/b@c:d" not in str(refused.value)


def test_a_url_loses_its_account() -> None:
    assert without_account("amqps://u:p@h:1,i/v") == "amqps://h:1,i/v"
    for wrong in ("http://h", "h", "amqp://"):
        with pytest.raises(SettingError):
            without_account(wrong)


@pytest.mark.parametrize("url", ["amqp://h/a@evil", "amqp://u:p@h/a@evil", "amqp://u:p/w@h/v"])
def test_a_bare_character_that_ends_a_part_of_a_url_is_refused_with_how_to_write_it(url: str) -> None:
    """And no part of a virtual host, or of a password, is taken for the host."""
    with pytest.raises(SettingError, match=r"@ is %40") as refused:
        without_account(url)
    assert "p/w" not in str(refused.value)


# ---------------------------------------------------------------- who speaks


def heard(user: str, key: str = "hospital-a.join") -> Delivery:
    """One message that crossed the memory transport."""
    broker = MemoryBroker()
    got: SimpleQueue[Delivery] = SimpleQueue()
    reader, sender = broker.connect(), broker.connect(user=user)
    reader.declare(F.for_controller())
    reader.consume(F.reports, got.put, prefetch=1)
    sender.publish(F.reports, [key], b"")
    delivery = got.get(timeout=30)
    sender.close()
    reader.close()
    return delivery


def test_where_accounts_are_identities_the_key_proves_nothing() -> None:
    speakers = Speakers("F", "required")
    mallory = speakers.of(heard("F.learner.mallory"), LEARNERS)
    assert mallory.name == "mallory"
    with pytest.raises(FrameRefused, match="in the name of 'hospital-a'"):
        mallory.check_report(m.Join(learner="hospital-a", session="s"))
    for user in ("guest", "", "G.learner.mallory", "F.driver.ana"):
        with pytest.raises(FrameRefused):
            speakers.of(heard(user), LEARNERS)


def test_where_an_account_is_shared_an_enrolled_one_still_speaks_for_itself_only() -> None:
    speakers = Speakers("F", "shared")
    assert speakers.of(heard("guest"), LEARNERS).name == "hospital-a"
    assert speakers.of(heard("F.learner.mallory"), LEARNERS).name == "mallory"


def test_an_observer_asks_for_lists_only() -> None:
    speaker = Speakers("F", "required").of(heard("F.observer.bob"), DRIVERS)
    driver = f"bob-{HEX}"
    speaker.check_request(m.ListJobs(driver=driver, request="r"))
    for request in (m.ReadModel, m.DeleteJob):
        with pytest.raises(RequestRefused, match="only watches"):
            speaker.check_request(request(driver=driver, request="r", job="j"))


# ---------------------------------------------------------------- limits


def test_a_rate_is_of_each_account_and_comes_back_with_time() -> None:
    limit = RateLimit(Rate(per_s=2.0, burst=3.0), "messages")
    assert [limit.take("a", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert limit.take("b", 0.0)
    assert [limit.take("a", 1.0) for _ in range(3)] == [True, True, False]
    assert [limit.take("a", 100.0) for _ in range(4)] == [True, True, True, False]
    assert not limit.has_left("a", 100.0)
    assert limit.has_left("a", 101.0)
    assert limit.take("a", 101.0)  # to look takes nothing
