"""The API: what it answers, what it refuses, what it leaves alone."""

import http.client
import json
import pathlib
import queue
import socket
import subprocess
import sys

import httpx
import pytest

from adaptd import api
from adaptd import config as configuration
from adaptd.errors import ConfigError
from adaptd.http import bound
from adaptd.lines import build_decoder
from adaptd.requests import PIECE_ROWS_MIN, Request, Speed
from tests import streams
from tests.lanes import Bench
from tests.services import POOL, Running
from tests.test_inbox import same

RECORDS = streams.classes(300)


@pytest.fixture(scope="module")
def service():
    with Running() as running:
        running.learn(RECORDS[:200])
        yield running


def without(record: dict, *names: str) -> dict:
    return {key: value for key, value in record.items() if key not in names}


def test_what_the_api_learns_is_what_a_stream_learns():
    bench = Bench({"control": {"rows": 16}}, learners=POOL).feed(RECORDS)
    with Running() as running:
        answers = running.learn(RECORDS[:77]) + running.learn(RECORDS[77:])
        state = running.daemon.lane.state()
    spoken = [
        None if answer["prediction"] is None else json.dumps(answer["prediction"]) for answer in answers
    ]
    assert spoken == bench.predictions()
    assert [answer["row"] for answer in answers] == list(range(1, 301))
    assert [json.loads(line) for line in running.sink.lines.splitlines()] == answers
    assert same(state["pool"], bench.lane.state()["pool"])


def test_predicting_without_an_id_changes_nothing(service):
    before = service.daemon.lane.state()
    lines = len(service.sink.lines)
    asked = [without(RECORDS[250], "id", "y"), {"a": 1, "new": "never seen", "colour": "violet"}, {"x": {}}]
    answer = service.post("predict", asked)
    assert len(answer["predictions"]) == 3
    assert all("row" not in prediction for prediction in answer["predictions"])
    assert same(service.daemon.lane.state(), before)
    assert len(service.sink.lines) == lines


def test_predicting_without_an_id_says_what_the_row_would_be_told(service):
    record = without(RECORDS[251], "id", "y")
    (forecast,) = service.post("predict", record)["predictions"]
    (told,) = service.post("predict", {"id": "told", **record})["predictions"]
    assert without(told, "id", "row") == forecast


def test_all_who_ask_at_once_are_told_of_their_own_rows(service):
    """One walk of the learners serves many; one who asks for much is served in parts between the others."""
    asked = [RECORDS[:1], RECORDS[:200] * 20, *([record] for record in RECORDS[200:290]), RECORDS[290:]]
    asked = [[without(record, "id", "y") for record in records] for records in asked]
    alone = [service.post("predict", records)["predictions"] for records in asked]
    daemon, told = service.daemon, queue.Queue()
    decoder = build_decoder("json", ",", daemon.config.fields)
    reads = [decoder.decode(streams.lines(records), daemon.lane.schema.kinds) for records in asked]
    for k, rows in enumerate(reads):
        daemon.desk.queue.put(Request("preview", lambda status, body, k=k: told.put((k, body())), rows=rows))
    answers = dict(told.get(timeout=60) for _ in asked)
    assert [json.loads(answers[k])["predictions"] for k in range(len(asked))] == alone


def test_a_label_finds_its_row(service):
    learned = service.daemon.lane.learned
    (answer,) = service.post("predict", {"id": "late", "a": 1.0})["predictions"]
    assert answer["row"] == service.daemon.lane.rows
    assert service.post("label", {"id": "late", "y": "up"}) == {"predictions": [], "rejected": []}
    assert service.daemon.lane.learned == learned + 1


@pytest.mark.parametrize(
    ("path", "body", "code", "words"),
    [
        ("predict", b"{", 400, "must be JSON"),
        ("predict", b'{"a": NaN}', 400, "must be JSON"),
        ("predict", b"[]", 422, "at least one record"),
        ("predict", b"{}", 422, "no_features"),
        ("predict", b"3", 422, "not_an_object"),
        ("predict", b'[{"a": 1}, {"a": [2]}]', 422, "record 1 (bad_feature)"),
        ("predict", b'{"a": 1, "y": "up"}', 422, "/api/v1/learn"),
        ("predict", b'{"id": 1, "y": "up"}', 422, "/api/v1/label"),
        ("learn", b'{"a": 1}', 422, "must have a label"),
        ("learn", b'{"id": 1, "y": "up"}', 422, "must have features"),
        ("label", b'{"y": "up"}', 422, "label_without_id"),
        ("label", b'{"id": 1, "y": "up", "a": 2}', 422, "use learn"),
        ("learners/none/reset", b"", 404, "linear, prior"),
        ("learners/linear/explode", b"", 404, "enable, disable"),
        ("nothing", b"", 404, "Not Found"),
        ("checkpoint", b"", 409, "checkpoint.directory"),
    ],
)
def test_a_bad_call_is_told_why_and_changes_nothing(path, body, code, words, service):
    before = service.daemon.lane.state()
    answer = service.client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == code
    assert words in answer.json()["error"]
    assert same(service.daemon.lane.state(), before)


@pytest.mark.parametrize(
    "query", ["journal?last=0", "journal?since=x", "history?points=1", "history?since=nan"]
)
def test_a_bad_parameter_is_named(query, service):
    name = query.partition("?")[2].partition("=")[0]
    assert service.get(query, 422)["error"].startswith(f"{name} must be")


def test_only_json_is_taken(service):
    answer = service.client.post("learn", content=b"a=1", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


def test_a_long_body_is_refused():
    with Running({"http": {"body_bytes_max": 2000}}) as running:
        assert "2000 bytes" in running.post("predict", {"a": "x" * 3000}, 413)["error"]
        running.post("predict", {"a": "x" * 1000})


def test_too_many_calls_are_refused_and_told_when_to_come_again():
    with Running({"http": {"requests_per_second": 5}}) as running:
        answers = [running.client.get("status") for _ in range(20)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 10
    assert refused[0].headers["Retry-After"] == "1"


def test_status_learners_and_journal_tell_how_it_stands(service):
    while (status := service.get("status"))["labels"] != service.daemon.lane.learned:
        assert service.thread.is_alive()
    assert status["task"] == "classification"
    assert status["champion"] in POOL
    assert status["source"] == {"kind": "none", "lag_bytes": 0}
    assert status["rejects"]["not_json"] == 0
    learners = service.get("learners")["learners"]
    assert [learner["name"] for learner in learners] == list(POOL)
    assert [learner["kind"] for learner in learners] == ["linear", "prior"]
    assert learners[1]["gradient_norm"] is None
    entries = service.get("journal", params={"last": 3})["entries"]
    assert [entry["seq"] for entry in entries] == sorted(entry["seq"] for entry in entries)
    assert service.get("journal", params={"kind": "task_decided"})["entries"][0]["payload"]["reason"]
    assert set(service.get("history")) >= {"learners", "points"}


# Commands.


def test_commands_take_effect_at_the_next_control_point_and_are_journalled():
    def learners() -> dict[str, dict]:
        slots = running.daemon.lane.pool.slots
        return {slot.name: (slot.frozen, slot.set_aside) for slot in slots}

    with Running() as running:
        running.learn(RECORDS[:20])
        assert running.post("learners/linear/freeze", code=202)["takes_effect"] == "next control point"
        running.post("learners/prior/disable", code=202)
        running.learn(RECORDS[20:31])
        assert learners() == {"linear": (False, ""), "prior": (False, "")}
        running.learn(RECORDS[31:32])
        assert learners() == {"linear": (True, ""), "prior": (False, "disabled")}
        kept = running.daemon.lane.pool.slots[1].learner.state()
        running.post("learners/linear/unfreeze", code=202)
        running.learn(RECORDS[32:48])
        assert same(running.daemon.lane.pool.slots[1].learner.state(), kept)
        running.post("learners/prior/enable", code=202)
        running.post("learners/linear/pin", code=202)
        running.post("learners/linear/reset", code=202)
        running.learn(RECORDS[48:64])
        assert learners() == {"linear": (False, ""), "prior": (False, "")}
        assert running.learn(RECORDS[64:80])[0]["learner"] == "linear"
        running.post("learners/linear/unpin", code=202)
        running.learn(RECORDS[80:96])
        kinds = [(entry["row"], entry["kind"]) for entry in running.get("journal")["entries"]]
    expected = [(32, "learner_frozen"), (32, "learner_set_aside"), (48, "learner_frozen"),
                (64, "learner_enabled"), (64, "champion_pinned"), (64, "learner_reset"),
                (96, "champion_pinned")]  # fmt: skip
    assert [entry for entry in kinds if entry[1] in {kind for _, kind in expected}] == expected


def test_the_last_learner_in_use_cannot_be_disabled():
    with Running() as running:
        running.post("learners/prior/disable", code=202)
        # The second one is accepted, as both were in use, and refused when its time has come.
        running.post("learners/linear/disable", code=202)
        running.learn(RECORDS[:16])
        refused = running.get("journal", params={"kind": "command_refused"})["entries"]
        assert refused[0]["payload"]["reason"] == "last_one"
        assert running.learn(RECORDS[16:20])[-1]["prediction"] is not None


def test_commands_survive_a_restart(tmp_path):
    tree = {"checkpoint": {"directory": str(tmp_path)}}
    with Running(tree) as running:
        running.post("learners/linear/freeze", code=202)
        running.post("learners/prior/pin", code=202)
        running.learn(RECORDS[:16])
        running.post("learners/prior/disable", code=202)
    with Running(tree) as running:
        lane = running.daemon.lane
        running.learn(RECORDS[16:17])
        assert lane.pool.slots[0].frozen
        assert lane.pin == "prior"
        assert lane.commands == [("disable", "prior")]


def test_a_checkpoint_is_saved_when_asked(tmp_path):
    with Running({"checkpoint": {"directory": str(tmp_path)}}) as running:
        saved = running.post("checkpoint")
        assert saved["number"] == 1
        assert pathlib.Path(saved["path"]).stat().st_size == saved["bytes"]


# Who may call.


def test_with_a_token_nobody_comes_in_without_it(tmp_path):
    secret = tmp_path / "token"
    secret.write_text("a long enough secret\n")
    with Running({"http": {"token_file": str(secret)}}) as running:
        assert running.client.get("status").status_code == 401
        assert running.client.get("status", headers={"Authorization": "Bearer wrong"}).status_code == 401
        answer = running.post("learn", RECORDS[0], 401)
        assert "Bearer" in answer["error"]
        good = {"Authorization": "Bearer a long enough secret"}
        assert running.client.get("status", headers=good).status_code == 200
        running.post("learn", RECORDS[0], headers=good)
        assert httpx.get(f"{running.url}/healthz").status_code == 200


def test_a_token_file_that_cannot_be_used_is_a_fault_of_the_configuration(tmp_path):
    with pytest.raises(ConfigError, match="readable file"):
        api.read_token(str(tmp_path / "none"))
    (tmp_path / "short").write_text("abc")
    with pytest.raises(ConfigError, match=r"at least 8 bytes; .* has 3"):
        api.read_token(str(tmp_path / "short"))


def test_without_a_token_other_addresses_may_read_and_not_write():
    with Running({"http": {"listen": "0.0.0.0:0"}}) as running:
        address = running.url.replace("0.0.0.0", "127.0.0.1")
        client = httpx.Client(base_url=f"{address}/api/v1/")
        assert client.get("status").status_code == 200
        assert client.post("predict", json={"a": 1}).status_code == 200
        for path, body in (("learn", RECORDS[0]), ("label", {"id": 1, "y": "up"}), ("predict", RECORDS[0]),
                           ("checkpoint", {}), ("reload", {}), ("learners/linear/reset", {})):  # fmt: skip
            record = without(body, "y") if path == "predict" else body
            answer = client.post(path, json=record)
            assert answer.status_code == 403, path
            assert "http.token_file" in answer.json()["error"]
        client.close()
        assert running.daemon.lane.rows == 0


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
def test_a_web_page_cannot_reach_a_loopback_daemon(headers, service):
    before = service.daemon.lane.rows
    answer = service.client.post("learn", json=RECORDS[0], headers=headers)
    assert answer.status_code == 403
    assert service.daemon.lane.rows == before


def test_its_own_page_may_call(service):
    answer = service.client.post("predict", json={"a": 1}, headers={"Origin": service.url})
    assert answer.status_code == 200


def test_tls_is_spoken_when_told(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    with Running({"http": {"tls_certificate": str(certificate), "tls_key": str(key)}}) as running:
        assert running.post("predict", {"a": 1})["predictions"]
        host = running.url.partition("//")[2]
        plain = http.client.HTTPConnection(host, timeout=10)
        plain.request("GET", "/healthz")
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.getresponse()
        plain.close()


def test_a_wrong_certificate_is_a_fault_of_the_configuration(tmp_path):
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(AssertionError), Running({"http": {"tls_certificate": str(tmp_path / "bad.pem")}}):
        pass


def test_no_source_needs_http():
    with pytest.raises(ConfigError, match=r"http\.enabled must be true when source.kind is 'none'"):
        configuration.read({"source": {"kind": "none"}}, "test")


# Beside a stream.


def test_who_asks_beside_a_stream_is_answered_before_the_stream_ends(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(streams.lines(streams.classes(20_000)))
    with Running({"source": {"kind": "file", "path": str(path), "poll_rows_max": 100_000}}) as running:
        for _ in range(5):
            running.post("predict", {"a": 1.0})
        learned = running.daemon.lane.learned
    assert learned < 20_000


def test_the_stream_is_not_touched_by_who_asks(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(streams.lines(streams.with_late_labels(streams.classes(3000), delay=50)))
    outputs = []
    for asked in (0, 30):
        source = {"kind": "file", "path": str(path), "follow": True}
        with Running({"source": source, "http": {"requests_per_second": 1e5}}) as running:
            for _ in range(asked):
                running.post("predict", {"a": 1.0, "other": "text"})
            while running.sink.lines.count(b"\n") < 3000:
                assert running.thread.is_alive()
        outputs.append(running.sink.lines)
    assert outputs[0] == outputs[1]


def test_pieces_end_at_control_points_and_are_as_long_as_allowed():
    with Running({"control": {"rows": 128}}) as running:
        desk = running.daemon.desk
        # A quarter longer at most, where that saves a piece.
        expected = {16: 19, 43: 43, 51: 43, 52: 64, 64: 64, 102: 64, 103: 128, 128: 128, 300: 256}
        assert {rows: desk.aligned(rows) for rows in expected} == expected
        running.learn(RECORDS[:100])
        assert [desk.aligned(rows) for rows in (16, 28, 156, 200)] == [14, 28, 156, 156]


def test_pieces_follow_the_time_of_a_row_and_not_a_single_stall():
    speed = Speed()
    speed.took(40, 0.004)
    assert speed.rows(0.005) == 50
    speed.took(40, 0.080)
    assert speed.rows(0.005) == 41, "concepts that are kept or recalled take their time once"
    speed.took(2, 0.002)
    assert speed.rows(0.005) >= 40, "nor do two rows tell of forty"
    for _ in range(30):
        speed.took(40, 0.080)
    assert speed.rows(0.005) == PIECE_ROWS_MIN, "but rows that stay slow are cut shorter"
    for _ in range(60):
        speed.took(PIECE_ROWS_MIN, 0.001)
    assert speed.rows(0.005) >= 75, "and longer when they are fast again"


# The document.


def test_the_openapi_document_names_every_route(service):
    document = service.get("openapi.json")
    assert document["openapi"] == "3.1.0"
    for path in ("predict", "learn", "label", "status", "learners", "journal", "history", "checkpoint",
                 "reload", "learners/{name}/pin"):  # fmt: skip
        assert f"/api/v1/{path}" in document["paths"]


def test_schemathesis_finds_nothing(tmp_path):
    tree = {"checkpoint": {"directory": str(tmp_path)}, "http": {"requests_per_second": 1e6}}
    config = []
    with Running(tree, reread=lambda: config[0]) as running:
        config.append(running.daemon.config)
        done = subprocess.run(
            [pathlib.Path(sys.executable).with_name("schemathesis"), "run",
             f"{running.url}/api/v1/openapi.json", "--max-examples", "5", "--phases", "coverage,fuzzing",
             "--seed", "1", "--generation-database", "none", "--no-color",
             # One command stands for all: they differ in nothing but their name.
             "--exclude-path-regex", "/(enable|disable|unfreeze|reset|pin|unpin)$"],
            capture_output=True, timeout=300, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode()[-8000:]


def test_answers_do_not_wait_for_acknowledgements():
    """asyncio switches Nagle's algorithm off for sockets that name their protocol, and for no others."""
    listening = bound("127.0.0.1:0", "127.0.0.1", 0)
    assert listening.proto == socket.IPPROTO_TCP
    listening.close()
