"""Configuration: every fault at once, each with place, rule, value and what to do."""

import tomllib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptd import config
from adaptd.errors import ConfigError, UsageError


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.read(tomllib.loads(text), "c.toml")
    return caught.value.faults


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[control]\nrows = 0", "c.toml: control.rows must be int >= 1; got 0."),
        ("[control]\nrows = 'many'", "c.toml: control.rows must be int; got 'many'."),
        ("[control]\nrow = 1", "control.row must be one of pin, rows; got 'row'. Did you mean 'rows'?"),
        ("[contrl]\nrows = 1", "Did you mean 'control'?"),
        ("control = 3", "c.toml: control must be a table; got 3."),
        ("[labels]\nage_seconds_max = nan", "c.toml: labels.age_seconds_max must be a number"),
        ("[log]\nlevel = 'loud'", "c.toml: log.level must be one of info, warning, error; got 'loud'."),
        ("[schema]\ntypes = {a = 'text'}", "c.toml: schema.types must be"),
        ("[pool.learners.a]\nkind = 'forst'", "Did you mean 'forest'?"),
        ("[pool.learners.a]\nfrozen = true", "c.toml: pool.learners.a.kind must be given."),
        ("[pool.learners.a]\nkind = 'linear'\nfrozen = 7", "pool.learners.a.frozen must be bool; got 7."),
        ("[pool.learners.a]\nkind = 'linear'\nspeed = 7", "c.toml: pool.learners.a.speed must be one of"),
        ("[pool.learners]\na = 3", "c.toml: pool.learners.a must be a table; got 3."),
        ("[controller]\nkind = 'stak'", "Did you mean 'stack'?"),
        ("[sink]\nformat = 'xml'", "c.toml: sink.format must be one of json, csv; got 'xml'."),
        ("[rates]\nboost = 0.5", "c.toml: rates.boost must be float >= 1.0; got 0.5."),
        ("[control]\npin = 'b'\n[pool.learners.a]\nkind = 'prior'", "c.toml: control.pin must be one of a"),
        ("[fields]\ntarget = 3", "c.toml: fields.target must be str; got 3."),
    ],
)  # fmt: skip
def test_a_fault_names_place_rule_and_value(text, words):
    (fault,) = faults(text)
    assert words in fault


def test_all_faults_come_at_once():
    assert len(faults("seed = -1\n[control]\nrows = 0\nrow = 1\n[drift]\nkind = 'x'\n[log]\nlevel = 1")) == 5


def test_long_values_are_cut():
    (fault,) = faults(f"[control]\nrows = '{'x' * 5000}'")
    assert len(fault) < 400


def test_assignments_come_on_top_and_are_typed(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[control]\nrows = 64\n[http]\nenabled = true")
    read = config.load(str(file), ["control.rows=256", "sink.path=out.jsonl", "sink.kind=file"])
    assert read.control.rows == 256
    assert read.http.enabled
    assert read.sink == {"kind": "file", "path": "out.jsonl"}


@pytest.mark.parametrize("text", ["rows", "=3", "a..b=3", "seed.x.y=1"])
def test_what_is_no_assignment_is_wrong_use(text):
    with pytest.raises((UsageError, ConfigError)):
        config.load(None, ["seed=1", text])


@pytest.mark.parametrize("name", ["none.toml", "."])
def test_a_file_that_cannot_be_read_is_a_fault(tmp_path, name):
    with pytest.raises(ConfigError, match="must be a readable file"):
        config.load(str(tmp_path / name))


def test_a_file_that_is_no_toml_is_a_fault(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[control\nrows = 3")
    with pytest.raises(ConfigError, match="line 1"):
        config.load(str(file))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from([field.name for field in msgspec.structs.fields(config.Config)]) | st.text(max_size=6)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(keys, values, max_size=4))
def test_any_tree_loads_or_names_a_path_in_it(tree):
    try:
        config.read(tree, "c.toml")
    except ConfigError as error:
        for fault in error.faults:
            place = fault.removeprefix("c.toml: ").split(" must be ")[0]
            assert any(place.startswith(key) for key in tree)
