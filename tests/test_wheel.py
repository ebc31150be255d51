"""The wheel: what is in it, and that it runs in an environment of its own, without the repository."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile

import pytest

from tests import streams

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built offline, from a copy: setuptools leaves its build directory beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "adaptd", source / "adaptd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    return next(folder.glob("adaptd-*.whl"))


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_all_of_the_package_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "adaptd"
    wanted = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.suffix == ".py" or (path.is_file() and path.is_relative_to(package / "page"))
    }
    assert held == wanted


def test_the_installed_wheel_answers_rows_on_a_pipe(wheel, tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = str(environment / "bin/python")
    pip("--python", python, "install", "--no-index", "--no-deps", str(wheel))
    # The dependencies are those of the tests' environment, so that no registry is needed. A path file adds
    # the folder and does not run the path files in it: the repository is not on the path.
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    place = subprocess.run(
        [python, "-c", "import adaptd; print(adaptd.__file__)"],
        capture_output=True, text=True, cwd=tmp_path, env=clean,
    )  # fmt: skip
    assert place.stdout.startswith(str(environment)), place.stderr
    records = streams.classes(300)
    done = subprocess.run(
        [str(environment / "bin/adaptd"), "run", "--set", "pool.learners.prior.kind=prior"],
        input=streams.lines(records), capture_output=True, cwd=tmp_path, env=clean,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [record["id"] for record in records]


def pins(path: pathlib.Path) -> set[str]:
    return set(re.findall(r"^[\w.-]+==[\w.]+", path.read_text(), re.M))


def test_the_locked_dependencies_of_the_service_are_those_that_are_tested():
    locked = pins(ROOT / "deploy/requirements.lock")
    assert locked <= pins(ROOT / "requirements.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.match(r"[\w-]+", line).group() for line in project["dependencies"]}
    assert wanted <= {pin.partition("==")[0] for pin in locked}


def test_the_locks_name_no_host():
    for name in ("requirements.lock", "deploy/requirements.lock", "benchmarks/requirements.lock"):
        assert "://" not in (ROOT / name).read_text()
