"""What the daemon is told: precedence, files, and all errors at once, each with file, key, rule and value."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from livetuned.daemon import config
from livetuned.daemon.config import CallerLimits, Classic, Config, ConfigError, Given, Retention
from livetuned.daemon.paths import socket_path, state_directory
from livetuned.daemon.settings import SECTIONS, SETTINGS

EXAMPLE = Path(__file__).parents[2] / "livetuned.example.toml"
HOME = {"HOME": "/home/ann", "XDG_RUNTIME_DIR": "/run/user/7"}
NOWHERE = Path("/nonexistent/livetuned.toml")


def load(environ: dict[str, str], **arguments: object) -> Config:
    """Loads without the machine's own file, unless the test brings one."""
    return config.load(environ, **{"system_file": NOWHERE, **arguments})  # type: ignore[arg-type]


def errors(environ: dict[str, str], **arguments: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(environ, **arguments)
    return str(caught.value).splitlines()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "given.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_defaults_are_private() -> None:
    told = load(HOME)
    assert Path("/home/ann/.local/state/livetune") == told.state
    assert ["unix:/run/user/7/livetune/livetuned.sock", "127.0.0.1:7470"] == list(map(str, told.listen))
    assert "127.0.0.1:9747" == str(told.metrics)
    assert (21_000, 21_999) == told.job_ports
    assert Classic(enabled=False, port_offset=1_000) == told.classic
    assert Retention(records=2_000_000, days=90.0, ended_days=30.0, lost_hours=168.0) == told.retention
    assert CallerLimits(changes_per_second=1_000.0, changes_burst=10_000) == told.limits
    assert told.fsync


def test_the_example_is_the_defaults_and_names_every_setting(write: Callable[..., Path]) -> None:
    assert load(HOME) == load(HOME, config=EXAMPLE)
    text = EXAMPLE.read_text()
    for setting in SETTINGS:
        assert re.search(rf"^(# )?{setting.key} = ", text, re.MULTILINE), setting.name
    for section in SECTIONS:
        assert f"\n[{section}]\n" in text
    everything = load(HOME, config=write(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)))
    assert Path("/var/lib/livetuned") == everything.state
    assert ["unix:/run/livetuned/livetuned.sock", "127.0.0.1:7470"] == list(map(str, everything.listen))


def test_flags_go_over_environment_over_defaults() -> None:
    environ = {
        "LIVETUNED_STATE": "/var/env",
        "LIVETUNED_LISTEN": "127.0.0.1:1, unix:/run/x/d.sock",
        "LIVETUNED_METRICS": "127.0.0.1:2",
        "LIVETUNED_JOB_PORTS": "3000-3001",
    }
    from_environment = load(environ)
    assert Path("/var/env") == from_environment.state
    assert ["127.0.0.1:1", "unix:/run/x/d.sock"] == list(map(str, from_environment.listen))
    assert (3_000, 3_001) == from_environment.job_ports
    from_flags = load(environ, state=Path("/f"), listen=("[::1]:5",), metrics="127.0.0.1:6", job_ports="4000-4000")
    assert (Path("/f"), ["[::1]:5"], "127.0.0.1:6", (4_000, 4_000)) == (
        from_flags.state,
        list(map(str, from_flags.listen)),
        str(from_flags.metrics),
        from_flags.job_ports,
    )


def test_the_users_file_goes_over_the_systems_and_under_the_environment(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    system = write("[retention]\ndays = 1\nrecords = 11_111\n[limits]\nchanges_burst = 5", "etc.toml")
    write("[retention]\ndays = 2.5\n[limits]\nchanges_burst = 6\nchanges_per_second = 7", "xdg/livetune/livetuned.toml")
    environ = {**HOME, "XDG_CONFIG_HOME": str(tmp_path / "xdg"), "LIVETUNED_LIMITS_CHANGES_PER_SECOND": "8.5"}
    told = load(environ, system_file=system)
    assert (2.5, 11_111, 6, 8.5) == (
        told.retention.days,
        told.retention.records,
        told.limits.changes_burst,
        told.limits.changes_per_second,
    )


def test_the_users_file_without_xdg_is_in_the_home(write: Callable[..., Path], tmp_path: Path) -> None:
    write("[retention]\ndays = 3", ".config/livetune/livetuned.toml")
    assert 3.0 == load({"HOME": str(tmp_path)}).retention.days


@pytest.mark.parametrize("by_flag", [True, False])
def test_a_file_that_is_named_stands_alone(write: Callable[..., Path], tmp_path: Path, by_flag: bool) -> None:
    system = write("[retention]\ndays = 1", "etc.toml")
    write("[retention]\nended_days = 2", "xdg/livetune/livetuned.toml")
    named = write("[classic]\nenabled = true")
    environ = {**HOME, "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    if not by_flag:
        environ["LIVETUNED_CONFIG"] = str(named)
    told = load(environ, system_file=system, config=named if by_flag else None)
    assert (90.0, 30.0, True) == (told.retention.days, told.retention.ended_days, told.classic.enabled)


def test_the_flag_goes_over_the_variable_that_names_a_file(write: Callable[..., Path]) -> None:
    one, other = write("[retention]\ndays = 1", "one.toml"), write("[retention]\ndays = 2", "other.toml")
    assert 2.0 == load({**HOME, "LIVETUNED_CONFIG": str(one)}, config=other).retention.days


def test_every_setting_has_its_environment_variable() -> None:
    texts = {
        "daemon.state": "/s", "daemon.listen": "127.0.0.1:1", "daemon.metrics": "127.0.0.1:2", "daemon.job_ports": "3000-3009",
        "classic.enabled": "yes", "classic.port_offset": "-100", "retention.records": "10000", "retention.days": "1e2",
        "retention.ended_days": "0.5", "retention.lost_hours": "1", "limits.changes_per_second": "0.1",
        "limits.changes_burst": "1",
    }  # fmt: skip
    assert set(texts) == {setting.name for setting in SETTINGS}
    told = load({setting.environment: texts[setting.name] for setting in SETTINGS})
    assert Classic(enabled=True, port_offset=-100) == told.classic
    assert Retention(10_000, 100.0, 0.5, 1.0) == told.retention
    assert CallerLimits(0.1, 1) == told.limits
    assert (3_000, 3_009) == told.job_ports


def test_an_empty_variable_is_none() -> None:
    assert load(HOME) == load({**HOME, "LIVETUNED_METRICS": "", "LIVETUNED_CONFIG": ""})


def test_origins_are_known(write: Callable[..., Path]) -> None:
    path = write("[classic]\nport_offset = 2000")
    found: list[str] = []
    given = config.gather(
        {**HOME, "LIVETUNED_CLASSIC_ENABLED": "on"}, {"daemon.metrics": "127.0.0.1:5"}, found, config=path
    )
    assert [] == found
    assert {setting.name for setting in SETTINGS} == set(given)
    assert Given(2_000, str(path)) == given["classic.port_offset"]
    assert Given(True, "environment variable LIVETUNED_CLASSIC_ENABLED") == given["classic.enabled"]
    assert Given("127.0.0.1:5", "flag --metrics") == given["daemon.metrics"]
    assert Given(90.0, "default") == given["retention.days"]


def test_all_errors_are_told_at_once() -> None:
    lines = errors({"LIVETUNED_STAET": "x"}, listen=("0.0.0.0:1", "nonsense"), metrics="unix:/x", job_ports="5-1")
    starts = [
        "environment variable LIVETUNED_STAET is unknown; did you mean LIVETUNED_STATE?",
        "flag --listen: daemon.listen = ['0.0.0.0:1', 'nonsense']: listen address '0.0.0.0:1': only loopback",
        "flag --listen: daemon.listen = ['0.0.0.0:1', 'nonsense']: listen address 'nonsense': neither",
        "flag --metrics: daemon.metrics = 'unix:/x': must be a loopback HOST:PORT",
        "flag --job-ports: daemon.job_ports = '5-1': must be FIRST-LAST with 1024 <= FIRST <= LAST <= 65535",
    ]
    assert starts == [line[: len(start)] for line, start in zip(lines, starts, strict=True)]


def test_everything_wrong_in_a_file_is_told_with_the_nearest_name(write: Callable[..., Path]) -> None:
    path = write(
        """
        days = 5
        [clasic]
        enabled = true
        [classic]
        enabld = true
        port_offset = true
        [retention]
        records = 9_999
        days = "90"
        ended_days = inf
        lost_hours = 0
        [limits]
        changes_burst = 1.5
        changes_per_second = nan
        zzz = 1
        [daemon]
        listen = "127.0.0.1:1"
        state = "here"
        job_ports = [1, 2]
        metrics = 9747
        """
    )
    assert [
        f"{path}: section days is unknown; days belongs into [retention]",
        f"{path}: section clasic is unknown; did you mean classic?",
        f"{path}: key classic.enabld is unknown; did you mean enabled?",
        f"{path}: key limits.zzz is unknown; there is changes_per_second, changes_burst",
        f"{path}: daemon.state = 'here': must be the absolute path of a folder",
        f"{path}: daemon.listen = '127.0.0.1:1': must be a list of addresses, such as [\"127.0.0.1:7470\"]",
        f"{path}: daemon.metrics = 9747: must be a loopback HOST:PORT",
        f"{path}: daemon.job_ports = [1, 2]: must be FIRST-LAST with 1024 <= FIRST <= LAST <= 65535",
        f"{path}: classic.port_offset = true: must be a whole number",
        f"{path}: retention.records = 9999: must be a whole number of at least 10,000",
        f"{path}: retention.days = '90': must be a number above 0",
        f"{path}: retention.ended_days = inf: must be a number above 0",
        f"{path}: retention.lost_hours = 0: must be a number above 0",
        f"{path}: limits.changes_per_second = nan: must be a number above 0",
        f"{path}: limits.changes_burst = 1.5: must be a whole number of at least 1",
    ] == errors(HOME, config=path)


@pytest.mark.parametrize(
    ("variable", "text", "rule"),
    [
        ("LIVETUNED_CLASSIC_ENABLED", "maybe", "must be true or false"),
        ("LIVETUNED_CLASSIC_PORT_OFFSET", "1e3", "must be a whole number"),
        ("LIVETUNED_RETENTION_RECORDS", "many", "must be a whole number of at least 10,000"),
        ("LIVETUNED_RETENTION_DAYS", "nan", "must be a number above 0"),
        ("LIVETUNED_LIMITS_CHANGES_BURST", "0", "must be a whole number of at least 1"),
        ("LIVETUNED_METRICS", "0.0.0.0:1", "only loopback"),
        ("LIVETUNED_LISTEN", ",", "must be a list of addresses"),
    ],
)
def test_a_variable_that_is_wrong_is_named_with_rule_and_value(variable: str, text: str, rule: str) -> None:
    (line,) = errors({**HOME, variable: text})
    assert line.startswith(f"environment variable {variable}: ")
    assert rule in line


def test_a_section_that_is_no_table(write: Callable[..., Path]) -> None:
    path = write("classic = true\nretention = 'x'")
    assert [
        f"{path}: classic = true: must be a table: [classic]",
        f"{path}: retention = 'x': must be a table: [retention]",
    ] == errors(HOME, config=path)


def test_files_that_can_not_be_read(write: Callable[..., Path], tmp_path: Path) -> None:
    assert [f"{NOWHERE}: there is no such file"] == errors(HOME, config=NOWHERE)
    assert [f"{tmp_path}: can't be read: Is a directory"] == errors(HOME, system_file=tmp_path)
    (line,) = errors(HOME, config=write("[classic\n"))
    assert "given.toml: is not TOML: " in line
    assert "line 1" in line
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"# \xff\n")
    assert [f"{binary}: is not UTF-8 at byte 2"] == errors(HOME, config=binary)
    (line,) = errors(HOME, config=write("#" * (config.FILE_BYTES + 1)))
    assert "may have 1,048,576 bytes" in line


@pytest.mark.parametrize(
    ("ports", "offset", "rule"),
    [
        ("21000-21999", 999, "moves job ports 21000-21999 to 21999-22998, which must not overlap the job ports"),
        ("21000-21999", 0, "must not overlap"),
        ("21000-21999", -999, "must not overlap"),
        ("64000-65000", 1_000, "to 65000-66000, which must lie in 1024-65535"),
        ("2000-2999", -1_000, "to 1000-1999, which must lie in 1024-65535"),
    ],
)
def test_classic_ports_must_have_room(write: Callable[..., Path], ports: str, offset: int, rule: str) -> None:
    path = write(f"[classic]\nenabled = true\nport_offset = {offset}")
    (line,) = errors(HOME, config=path, job_ports=ports)
    assert f"{path}: classic.port_offset = {offset}: " in line
    assert rule in line
    off = write(f"[classic]\nport_offset = {offset}", "off.toml")
    assert offset == load(HOME, config=off, job_ports=ports).classic.port_offset


@pytest.mark.parametrize(("ports", "offset"), [("21000-21999", 1_000), ("21000-21999", -1_000), ("65000-65000", 535)])
def test_classic_ports_that_just_fit(write: Callable[..., Path], ports: str, offset: int) -> None:
    path = write(f"[classic]\nenabled = true\nport_offset = {offset}")
    assert load(HOME, config=path, job_ports=ports).classic.enabled


def test_systemds_folders_come_first() -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/livetuned", "RUNTIME_DIRECTORY": "/run/livetuned:/run/other"}
    assert Path("/var/lib/livetuned") == state_directory(environ)
    assert Path("/run/livetuned/livetuned.sock") == socket_path(environ)
    assert Path("/var/lib/livetuned") == load(environ).state
