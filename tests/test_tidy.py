"""The house rules as tests: who may import whom, how long a file may be, what stands in an `__init__.py`."""

import ast
import pathlib
import re

import pytest

from adaptd import config, registry
from adaptd.contracts import REJECT_REASONS

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "adaptd"
SOURCES = sorted(PACKAGE.rglob("*.py"))
FAMILIES = ("learners", "detectors", "controllers", "decoders", "sources", "sinks")

SHARED = {"contracts", "errors", "numerics", "kernels"}
# What the components of a family may import of adaptd.
MAY_IMPORT = {
    "learners": SHARED | {"river_objects"},
    "detectors": SHARED | {"river_objects"},
    "controllers": SHARED,
    "decoders": SHARED | {"records"},
    "sources": SHARED | {"records", "lines", "tables", "kafka_client"},
    "sinks": SHARED | {"kafka_client"},
    "kernels": SHARED | {"__version__", "registry"},
}
# Components are functions of what they are handed.
FORBIDDEN = {"logging", "random", "datetime", "time", "prometheus_client"}
MAY_READ_TIME = {"decoders", "sources", "sinks"}

relative = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in SOURCES]


def imports(path: pathlib.Path) -> set[str]:
    """Modules that a file imports, adaptd's as `adaptd.name`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= {f"adaptd.{alias.name}" for alias in node.names} if module == "adaptd" else {module}
    return found


@pytest.mark.parametrize("path", relative)
def test_components_import_only_what_they_may(path):
    family = path.relative_to(PACKAGE).parts[0]
    if family not in MAY_IMPORT or path.name == "warm.py":
        return
    for module in imports(path):
        top, *rest = module.split(".")
        if top == "adaptd" and rest:
            assert rest[0] in MAY_IMPORT[family], f"{path} imports {module}"
        elif family not in MAY_READ_TIME:
            assert top not in FORBIDDEN, f"{path} imports {module}"


def test_kernels_call_only_kernels_of_their_own_file_or_of_the_kernels_folder():
    """The compiled cache sees changes of these two and of nothing else."""
    for path in SOURCES:
        if "@kernel" not in path.read_text() and "@subkernel" not in path.read_text():
            continue
        for module in imports(path):
            if module.startswith("adaptd."):
                file = PACKAGE / pathlib.Path(*module.split(".")[1:]).with_suffix(".py")
                has_kernels = file.exists() and "@subkernel" in file.read_text()
                assert not has_kernels or module.startswith("adaptd.kernels."), f"{path} calls {module}"


@pytest.mark.parametrize("path", relative)
def test_no_subkernel_hands_out_an_array(path):
    """References to arrays are not counted in it, so its caller would let go of one that it never held."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef) or "subkernel" not in "".join(
            map(ast.unparse, function.decorator_list)
        ):
            continue
        parts = [node for node in ast.walk(function) if isinstance(node, ast.Subscript)]
        arrays = {ast.unparse(part.value) for part in parts}
        rows = {ast.unparse(part) for part in parts if ":" in ast.unparse(part.slice)}
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                for value in map(ast.unparse, values):
                    assert value not in arrays | rows, f"{function.name} returns {value}"


@pytest.mark.parametrize("path", relative)
def test_files_can_be_found_ones_way_in(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 600
    if path.name == "__init__.py":
        assert not text or (path.parent == PACKAGE and "__version__" in text)
    else:
        assert ast.get_docstring(ast.parse(text)), "a module says what it is"


@pytest.mark.parametrize("path", relative)
def test_no_unfinished_work(path):
    assert not re.search(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError", path.read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_option_is_documented_and_has_a_default(family):
    for kind in registry.kinds(family):
        for name, words, _, text in config.documentation(registry.load(family, kind).Config):
            assert text, f"{family}.{kind}: {name} says nothing"
            assert words


@pytest.mark.parametrize("section", [
    config.Config, config.SchemaConfig, config.PoolConfig, config.LabelsConfig, config.CheckpointConfig,
    config.JournalConfig, config.DeadLettersConfig, config.HttpConfig, config.LogConfig, config.ControlConfig,
    config.OutputConfig, config.StudentConfig,
], ids=lambda section: section.__name__)  # fmt: skip
def test_the_example_configuration_shows_every_key(section):
    text = (ROOT / "config.toml").read_text()
    for name, _, _, _ in config.documentation(section):
        assert re.search(rf"^(#\s*)?(\[(.*\.)?{name}[.\]]|{name} =)", text, re.M), f"config.toml lacks {name}"


def test_every_reason_of_a_reject_is_declared():
    used = set()
    for path in SOURCES:
        used |= set(re.findall(r'(?:Reject|RecordError)\(\s*"(\w+)"', path.read_text()))
    assert used <= set(REJECT_REASONS)
    assert "not_json" in used


def test_readme_and_docs_name_files_that_exist():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for name in re.findall(r"`((?:adaptd|docs|tests|benchmarks|deploy)/[\w/.]+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page} names {name}"
