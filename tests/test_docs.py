"""The documents say what the code does: pages made from it, commands, keys, links."""

import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from adaptd import cli, config, reference, registry
from tests.test_prometheus import slug

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [pytest.param(path, id=path.name) for path in sorted((ROOT / "docs").glob("*.md"))]


def test_pages_made_from_the_code_are_what_it_says():
    # In a process of its own, as `make docs` makes them: how a type prints can depend on what was imported.
    command = [sys.executable, "-m", "adaptd.reference", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_stale_page_is_noticed(tmp_path):
    for name, text in reference.pages().items():
        (tmp_path / name).write_text(text)
    assert reference.stale(tmp_path) == []
    (tmp_path / "metrics.md").write_text("of last year")
    assert reference.stale(tmp_path) == ["metrics.md"]


def test_every_option_of_every_component_is_in_the_reference():
    page = (ROOT / "docs" / "config.md").read_text()
    for section, family in reference.FAMILIES.items():
        part = page.partition(f"## [{section}]\n")[2].partition("\n## ")[0]
        for kind in registry.kinds(family):
            of_kind = part.partition(f'### kind = "{kind}"\n')[2].partition("\n### ")[0]
            for name, *_ in config.documentation(registry.load(family, kind).Config):
                assert f"| `{name}` |" in of_kind, (family, kind)


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ .+", page.read_text(), re.M)
            assert anchor in map(slug, headings), target


def commands(path):
    """The commands `adaptd ...` in the page's blocks, continued lines joined."""
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", path.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ")
            for part in re.split(r"\s[|&]+\s|\s&$", line):
                if part.strip().startswith("adaptd "):
                    yield re.split(r"\s\d?[<>]", part)[0]


@pytest.mark.parametrize("path", PAGES)
def test_commands_are_ones_that_adaptd_knows(path):
    for command in commands(path):
        options = cli.parser().parse_args(shlex.split(command)[1:])
        # A key that does not exist is a fault, and raises.
        config.load(None, getattr(options, "set", []))


def test_the_tutorial_has_commands():
    assert len(list(commands(ROOT / "docs" / "tutorial.md"))) >= 4


@pytest.mark.parametrize("path", PAGES)
def test_configurations_in_the_documents_are_good(path):
    for block in re.findall(r"```toml\n(.*?)```", path.read_text(), re.S):
        config.read(tomllib.loads(block), path.name)


def test_every_key_that_operations_names_exists():
    page = (ROOT / "docs" / "operations.md").read_text()
    sections = {entry: reference.section_of(entry) for entry in config.Config.__struct_fields__}
    named = re.findall(r"`(\w+)\.(?!jsonl)(\w+)`", page)
    checked = 0
    for section, key in named:
        if sections.get(section) is not None:
            assert key in sections[section].__struct_fields__, f"{section}.{key}"
            checked += 1
    assert checked > 10
