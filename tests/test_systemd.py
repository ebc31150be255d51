"""The units: checked by systemd's own tool, and run by a real systemd where that can be."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest

from adaptd.kernels.compile import cache_directory
from tests import streams
from tests.conftest import not_run

ROOT = pathlib.Path(__file__).parent.parent
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
BOOT = ROOT / "tests/systemd"
EXPOSURE_MAX = 15  # tenths

by_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)


def settings(unit: pathlib.Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def analyze(*arguments: str) -> subprocess.CompletedProcess:
    if shutil.which("systemd-analyze") is None:
        not_run("systemd-analyze is not installed")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True)


@by_unit
def test_the_unit_has_no_fault(unit, tmp_path):
    # Whether the program is there is no question of the unit.
    copy = tmp_path / unit.name.replace("@", "@one")
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.M))
    done = analyze("verify", "--recursive-errors=no", str(copy))
    assert (done.returncode, done.stderr) == (0, "")


@by_unit
def test_the_unit_is_shut_off_from_the_rest_of_the_machine(unit):
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", str(unit))
    assert done.returncode == 0, done.stdout


@by_unit
def test_what_a_restart_cannot_cure_is_not_restarted(unit):
    from adaptd.errors import ConfigError, UsageError

    codes = {int(code) for code in settings(unit)["RestartPreventExitStatus"][0].split()}
    assert codes == {ConfigError.exit_code, UsageError.exit_code}


@by_unit
def test_every_directive_left_off_has_its_reason(unit):
    for directive in ("MemoryDenyWriteExecute", "PrivateNetwork", "RootDirectory"):
        assert directive not in settings(unit)
        assert re.search(rf"^# - {directive}=.*: ", unit.read_text(), re.M)


def test_the_template_differs_from_the_unit_only_where_it_must():
    """And two instances share no directory: systemd would hand it from one user to the other."""
    one, many = (settings(unit) for unit in UNITS)
    different = {key for key in one | many if one.get(key) != many.get(key)}
    assert different == {
        "Description", "ExecStart", "StateDirectory", "CacheDirectory", "WorkingDirectory", "LoadCredential",
    }  # fmt: skip
    assert all("%i" in value for key in different for value in many[key])


def test_the_shipped_configuration_is_good(tmp_path):
    """In a folder of its own: paths are relative to the state directory."""
    done = subprocess.run(
        [sys.executable, "-m", "adaptd", "check", "--config", str(ROOT / "deploy/systemd/config.toml"),
         "--set", "pool.learners.prior.kind=prior"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def cannot_boot() -> str:
    """Why no systemd can be run in isolation here; empty when it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root"
    for program in ("unshare", "findmnt", "journalctl", "systemctl"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not os.access("/lib/systemd/systemd", os.X_OK):
        return "systemd is not installed"
    found = subprocess.run(["findmnt", "-no", "TARGET", "-t", "cgroup2"], capture_output=True, text=True)
    groups = found.stdout.split()
    if not groups or not os.access(groups[0], os.W_OK):
        return "no writable cgroup2 file system is mounted"
    namespaces = ["unshare", "--mount", "--pid", "--cgroup", "--net", "--ipc", "--uts", "--fork", "true"]
    if subprocess.run(namespaces, capture_output=True).returncode:
        return "namespaces cannot be made"
    for path in (ROOT, pathlib.Path(sysconfig.get_path("purelib"))):
        if str(path).startswith(("/root", "/home", "/run/user", "/tmp", "/var/tmp")):
            return f"{path} lies in a home or temporary directory, which the service cannot see"
    return ""


CONFIG = """
[source]
kind = "file"
path = "events.jsonl"
follow = true
[sink]
kind = "file"
path = "predictions.jsonl"
[checkpoint]
directory = "state"
interval_seconds = 0.5
[pool.learners.prior]
kind = "prior"
[pool.learners.linear]
kind = "linear"
"""


@pytest.fixture(scope="module")
def booted(tmp_path_factory):
    """What the probe saw under a real systemd."""
    reason = cannot_boot()
    if reason:
        not_run(f"a real systemd in isolation: {reason}")
    results = tmp_path_factory.mktemp("systemd")
    records = streams.classes(1000)
    (results / "first.jsonl").write_bytes(streams.lines(records[:500]))
    (results / "second.jsonl").write_bytes(streams.lines(records[500:]))
    (results / "config.toml").write_text(CONFIG)
    (results / "reload_mark").write_text("config_changed")
    # What has to be compiled is compiled here, into the cache that the service gets a copy of.
    subprocess.run(
        [sys.executable, "-m", "adaptd", "run", "--set", "pool.learners.prior.kind=prior",
         "--set", "pool.learners.linear.kind=linear"],
        input=streams.lines(records[:10]), check=True, capture_output=True, cwd=ROOT,
    )  # fmt: skip
    python = pathlib.Path(sys.executable).resolve()
    setup = {
        "ROOT": ROOT,
        "PYTHON_HOME": python.parent.parent,
        "PYTHON_NAME": python.name,
        "PYTHON_PATH": f"{ROOT}:{sysconfig.get_path('purelib')}",
        "CACHE": cache_directory(),
    }
    (results / "setup").write_text("".join(f"{key}='{value}'\n" for key, value in setup.items()))
    done = subprocess.run(
        ["bash", str(BOOT / "boot.sh"), str(BOOT / "probe.sh"), str(results), "120"],
        capture_output=True, text=True,
    )  # fmt: skip
    everything = "\n".join(
        f"== {path.name}\n{path.read_text(errors='replace')}"
        for path in sorted(results.iterdir())
        if path.suffix == ".log" or path.name == "seen"
    )
    assert done.returncode == 0, done.stderr + everything
    seen = dict(line.split("=", 1) for line in (results / "seen").read_text().splitlines())
    seen["predictions"] = (results / "predictions.jsonl").read_text()
    seen["uninstall_log"] = (results / "uninstall.log").read_text()
    seen["everything"] = everything
    return seen


def test_a_real_systemd_starts_it_when_it_is_ready(booted):
    assert (booted["start"], booted["active"]) == ("0", "active"), booted["everything"]
    assert re.match(r"0 rows; .*checkpoint \d+ s ago", booted["status_at_ready"])
    assert int(booted["process_user"]) >= 61184  # the first of systemd's dynamic users
    assert booted["dynamic_user"] not in ("root", "")


def test_only_the_service_reads_the_token(booted):
    assert booted["token"] == "s3cret"
    assert booted["token_mode"] in ("400", "440")


def test_an_idle_source_is_no_hang(booted):
    assert booted["idle_kept_process"] == "yes", booted["everything"]
    assert re.match(
        r"500 rows; [\d,]+ a second; champion linear; accuracy 0\.\d+; checkpoint \d+ s ago",
        booted["status_idle"],
    )


def test_a_reload_keeps_the_process(booted):
    assert booted["reload"] == "0"
    assert (booted["reload_kept_process"], booted["reload_active"]) == ("yes", "active")


def test_a_hung_daemon_is_restarted_and_goes_on_with_the_next_row(booted):
    assert booted["watchdog_result"] == "1", booted["everything"]
    assert booted["new_process"] == "yes"
    answers = [json.loads(line) for line in booted["predictions"].splitlines()]
    assert [answer["row"] for answer in answers] == list(range(1, 1001))
    assert [answer["id"] for answer in answers] == [record["id"] for record in streams.classes(1000)]


def test_a_stop_is_a_success(booted):
    assert (booted["stop_result"], booted["stop_status"]) == ("success", "0")


def test_a_wrong_configuration_is_not_tried_again(booted):
    assert booted["wrong_start"] != "0"
    assert (booted["wrong_status"], booted["wrong_restarts"]) == ("78", "0"), booted["everything"]
    assert booted["wrong_state"] == "failed"


def test_uninstall_leaves_nothing_but_state_and_says_where(booted):
    left = ["/etc/adaptd", "/etc/systemd/system/adaptd.service.d", "/var/lib/private/adaptd"]
    assert booted["leftovers"].split() == sorted([*left, "/var/lib/adaptd"])
    for path in left:
        assert f"left: {path}\n" in booted["uninstall_log"]
