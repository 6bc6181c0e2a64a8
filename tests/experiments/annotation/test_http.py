"""A language model as annotator, with a real server that answers, is slow, fails, answers wrongly or disappears."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.server
import itertools
import json
import socket
import sys
import threading
import time

import pytest

from experiments.annotation.cache import Cache
from experiments.annotation.chat_endpoint import KEY, MODEL, URL
from experiments.annotation.http import Http, instructions, listing, read_labels
from experiments.annotation.service import AnnotationService
from experiments.assembly import registry
from experiments.assembly.build import build_annotation, build_environment
from experiments.commands import run
from experiments.errors import UserError
from tests.experiments import corridor, talking
from tests.experiments.talking import LENGTH, read, said

QUICK = {"goal": "find keys", "timeout": 0.4, "shortest_wait": 0.01, "longest_wait": 0.05}
SECRET = "sk-very-secret"


class Server:
    """An endpoint whose answer to request ``n`` is what ``script[n]`` makes of it, the last one for all that follow.

    The first request is the one that is made at the start.
    """

    def __init__(self, *script, port=0):
        self.requests, self.released = [], threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                number = len(outer.requests)
                outer.requests.append((self.path, dict(self.headers), body))
                with contextlib.suppress(OSError):
                    script[min(number, len(script) - 1)](outer, self, body)

            def log_message(self, *arguments):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request, address):
                pass

        self._server = Quiet(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def asked(self):
        """The text of the questions of every request."""
        return [body["messages"][1]["content"].splitlines() for _, _, body in self.requests]

    def close(self):
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


def reply(handler, status, content, headers=()):
    handler.send_response(status)
    for name, value in (*headers, ("Content-Length", str(len(content)))):
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


def chat(text, usage=True):
    answer = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return json.dumps(answer | ({"usage": {"prompt_tokens": 100, "completion_tokens": 10}} if usage else {})).encode()


def judged(body):
    """Answers one line per question: a key is good, and the first of a pair is better if it is a key."""
    lines = []
    for line in body["messages"][1]["content"].splitlines():
        number, _, quoted = line.partition(": ")
        worth = ["key" in text for text in json.loads(f"[{quoted}]")]
        label = str(int(worth[0])) if len(worth) == 1 else "tie" if worth[0] == worth[1] else "1" if worth[0] else "2"
        lines.append(f"{number}: {label}")
    return "\n".join(lines)


def fine(server, handler, body):
    reply(handler, 200, chat(judged(body)))


def says(text, usage=True):
    return lambda server, handler, body: reply(handler, 200, text if isinstance(text, bytes) else chat(text, usage))


def fails(status, *headers):
    return lambda server, handler, body: reply(handler, status, b"no", headers)


def hangs(server, handler, body):
    server.released.wait(20)


def breaks(server, handler, body):
    """Announces a longer answer than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{")


def dawdles(server, handler, body):
    """Sends each part within the time-out, but never all of them."""
    handler.send_response(200)
    for number in range(200):
        handler.send_header(f"X-Line-{number}", "still here")
        handler.flush_headers()
        if server.released.wait(0.05):
            return


@pytest.fixture
def serve(monkeypatch):
    """``serve(*script)`` starts a server and points the environment at it."""
    made = []

    def start(*script, port=0):
        made.append(Server(*script or (fine,), port=port))
        monkeypatch.setenv(URL, f"http://127.0.0.1:{made[-1].port}/v1/")
        return made[-1]

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(MODEL, "reader-1")
    monkeypatch.setenv(KEY, SECRET)
    yield start
    for server in made:
        server.close()


@pytest.fixture
def service():
    """``service(settings)`` makes a service and starts it; all are closed at the end."""
    made = []

    def start(size=1, state=None, **settings):
        annotator = Http(**QUICK | settings, size=size)
        made.append(AnnotationService(annotator, length=LENGTH, size=size, capacity=100, pairs=2))
        made[-1].start(state)
        return made[-1]

    yield start
    for each in made:
        each.close()


def gathered(service, wanted, *texts, seconds=10.0):
    """The labels that arrive after the messages ``texts``, until there are ``wanted``."""
    found, deadline = read(service.exchange(said(*texts or [""]))), time.monotonic() + seconds
    while len(found) < wanted and time.monotonic() < deadline:
        found |= read(service.exchange(said("")))
        time.sleep(0.005)
    assert len(found) == wanted, (found, service.counts())
    return found


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def nonzero(service):
    return {name: value for name, value in service.counts().items() if value}


def test_labels_and_what_is_sent(serve, service, tmp_path):
    server, cache = serve(), tmp_path / "deep" / "labels.jsonl"
    made = service(cache=str(cache), prompt_price=2.0, completion_price=10.0)
    assert gathered(made, 3, "a key", "a wall", 'the "door"', "a key") == {
        "a key": 1.0,
        "a wall": 0.0,
        'the "door"': 0.0,
    }
    path, headers, body = server.requests[-1]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {SECRET}"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("reader-1", 0.1, 1024)
    assert body["messages"][0]["content"] == instructions("find keys", 1)
    assert {line.partition(": ")[2] for lines in server.asked[1:] for line in lines} == {
        '"a key"',
        '"a wall"',
        r'"the \"door\""',
    }
    counts = nonzero(made)
    requests = counts.pop("requests")
    assert counts == {"messages": 4.0, "labels": 3.0, "cost": pytest.approx(requests * (100 * 2 + 10 * 10) / 1e6)}
    assert SECRET not in cache.read_text() and len(server.requests) == requests


def test_pairs(serve, service):
    server = serve()
    made = service(size=2)
    [(pair, label)] = gathered(made, 1, "a key", "a wall").items()
    assert label == (pair[0] == "a key") and set(pair) == {"a key", "a wall"}
    assert server.asked[-1] == [f'1: "{pair[0]}", "{pair[1]}"']


def held_back(blocked):
    """Answers once ``blocked`` is set."""

    def answer(server, handler, body):
        blocked.wait(20)
        fine(server, handler, body)

    return answer


def test_the_learner_does_not_wait(serve, service):
    blocked = threading.Event()
    server = serve(fine, held_back(blocked))
    made = service(timeout=20.0)
    assert [read(made.exchange(said("a key"))) for _ in range(20)] == [{}] * 20
    until(lambda: len(server.requests) == 2)
    assert read(made.exchange(said("a wall"))) == {} and made.counts()["queue"] == 2
    blocked.set()
    assert gathered(made, 2) == {"a key": 1.0, "a wall": 0.0}


TROUBLES = {
    "500, then it works": ([fails(500), fails(503)], {"http_errors": 2, "retries": 2}),
    "too many requests": ([fails(429, ("Retry-After", "0.02"))], {"http_errors": 1, "retries": 1}),
    "an odd Retry-After": ([fails(429, ("Retry-After", "Tue, 1 Jan"))], {"http_errors": 1, "retries": 1}),
    "it hangs": ([hangs], {"timeouts": 1, "retries": 1}),
    "it breaks off": ([breaks], {"unreachable": 1, "retries": 1}),
    "every part of it is slow": ([dawdles], {"timeouts": 1, "retries": 1}),
    "no JSON": ([says(b"<html>")], {"garbage": 1, "retries": 1}),
    "other JSON": ([says(b'{"choices": []}'), says(b"[1]")], {"garbage": 2, "retries": 2}),
    "no text": (
        [says(json.dumps({"choices": [{"message": {"content": None}}]}).encode())],
        {"garbage": 1, "retries": 1},
    ),
    "no label": ([says("I think that it is good."), says("1: 7")], {"unlabelled": 2}),
    "far too much": ([says(b" " * (2**20 + 2**17))], {"garbage": 1, "retries": 1}),
    "a line of blanks": ([says("1:" + " " * 10**6)], {"unlabelled": 1}),
    "no JSON for long": ([says(b"<html>")] * 9, {"garbage": 9, "retries": 7}),
    "all attempts fail, later it works": ([fails(500)] * 5, {"http_errors": 5, "retries": 4}),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_failed_requests_are_counted_and_no_question_is_lost(name, serve, service):
    answers, expected = TROUBLES[name]
    server = serve(fine, *answers, fine)
    made = service()
    assert gathered(made, 1, "a key") == {"a key": 1.0}
    counts = nonzero(made)
    assert counts.pop("requests") == len(server.requests) == 2 + len(answers)
    assert counts == {"messages": 1.0, "labels": 1.0} | expected


def test_questions_that_never_get_a_label_are_given_up(serve, service):
    server = serve(fine, says("1: 1\n2: maybe\n9: 1\n1: 0"))
    made = service(attempts=3)
    made.exchange(said("old", "new"))
    # The first line of a number counts; the newest question is the last of a request.
    until(lambda: made.exchange(said("")) and made.counts()["given_up"] + made.counts()["labels"] == 2)
    assert made.counts()["queue"] == 0
    asked = len(server.requests)
    made.exchange(said("old", "new", "other"))
    until(lambda: made.exchange(said("")) and made.counts()["labels"] + made.counts()["given_up"] == 3)
    # Questions that were given up are not asked again.
    assert all(line.endswith('"other"') for lines in server.asked[asked:] for line in lines)


def dislikes(word):
    """Refuses every request that has ``word`` in a question."""

    def answer(server, handler, body):
        if word in body["messages"][1]["content"]:
            reply(handler, 400, b"no")
        else:
            fine(server, handler, body)

    return answer


def test_a_refused_question_does_not_lose_the_others_of_its_request(serve, service):
    server = serve(dislikes("wall"))
    made = service()
    labels = gathered(made, 3, "key 1", "a wall", "key 2", "a door")
    assert labels == {"key 1": 1.0, "key 2": 1.0, "a door": 0.0}
    until(lambda: made.counts()["given_up"] == 1)
    # Together, then one by one; the state of a run that ends in between knows which.
    assert made.counts()["http_errors"] == 2 and made.counts()["queue"] == 0
    assert sum('1: "a wall"' in lines for lines in server.asked) == 1
    assert made.state()["annotator"]["alone"] == []


def test_unreadable_replies_are_retried_after_a_wait(serve, service):
    questions = [f"key {number}" for number in range(30)]
    times = []

    def nonsense(server, handler, body):
        times.append(time.monotonic())
        says(b"<html>maintenance</html>")(server, handler, body)

    serve(fine, *[nonsense] * 6, fine)
    made = service(batch=10, shortest_wait=0.05, longest_wait=0.05)
    made.exchange(said(*questions))
    found = {}
    until(lambda: found.update(read(made.exchange(said("")))) or len(found) == 30)
    # A random wait is at least half of the nominal one.
    assert all(later - sooner >= 0.025 for sooner, later in itertools.pairwise(times))
    assert made.counts()["given_up"] == 0 and made.counts()["garbage"] == 6


@pytest.mark.parametrize("usage", ["1e999", "1" * 400, "-1e999", '"many"', "null", "[]"])
def test_an_unreadable_cost_counts_as_the_largest_possible(usage, serve, service):
    text = chat("1: 1").replace(b'"prompt_tokens": 100', f'"prompt_tokens": {usage}'.encode())
    server = serve(says(text))
    made = service(completion_price=1e6, max_tokens=7, prompt_price=1e-9, max_cost=1000.0)
    assert gathered(made, 1, "a key") == {"a key": 1.0}
    assert made.counts()["cost"] == pytest.approx(7 * len(server.requests), rel=1e-3)


def test_a_request_that_is_refused_gives_up_its_questions(serve, service):
    serve(fine, fails(400), fine)
    made = service()
    made.exchange(said("a key"))
    until(lambda: made.counts()["given_up"] == 1)
    assert gathered(made, 1, "a key", "a wall") == {"a wall": 0.0}
    assert made.counts()["http_errors"] == 1 and made.counts()["retries"] == 0


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_later_refusal_ends_the_annotator_and_not_the_run(status, serve, service):
    server = serve(fine, fails(status))
    made = service()
    made.exchange(said("a key"))
    until(lambda: made.counts()["gone"] == 1)
    assert read(made.exchange(said("a wall"))) == {}
    assert nonzero(made) == {"gone": 1.0, "requests": 2.0, "http_errors": 1.0, "queue": 2.0, "messages": 2.0}
    state = made.state()
    server.close()
    # Unanswered questions are asked again when the run continues.
    serve()
    again = service(state=state)
    assert gathered(again, 2) == {"a key": 1.0, "a wall": 0.0}
    assert again.counts()["gone"] == 0


def test_an_endpoint_that_disappears_and_returns_is_used_again(serve, service):
    server = serve()
    made = service(attempts=2)
    assert gathered(made, 1, "key 1") == {"key 1": 1.0}
    server.close()
    made.exchange(said("key 2", "key 3"))
    until(lambda: made.counts()["unreachable"] >= 3)
    assert read(made.exchange(said("key 1"))) == {} and made.counts()["queue"] == 2
    serve(port=server.port)
    assert gathered(made, 2) == {"key 2": 1.0, "key 3": 1.0}


def test_the_newest_questions_are_asked_first_and_the_oldest_dropped(serve, service):
    blocked = threading.Event()
    server = serve(fine, held_back(blocked), fine)
    made = service(batch=1, queue=2, timeout=20.0)
    made.exchange(said("key 1"))
    until(lambda: len(server.requests) == 2)
    made.exchange(said("key 2", "key 3", "key 4"))
    assert (made.counts()["dropped"], made.counts()["queue"]) == (1, 3)
    blocked.set()
    assert set(gathered(made, 3)) == {"key 1", "key 3", "key 4"}
    assert server.asked[1:] == [['1: "key 1"'], ['1: "key 4"'], ['1: "key 3"']]
    # A dropped message is asked about when it comes again.
    assert gathered(made, 1, "key 2") == {"key 2": 1.0}


def test_the_number_of_requests_is_capped(serve, service):
    server = serve(fine, fails(500))
    made = service(max_requests=3)
    made.exchange(said("a key"))
    until(lambda: made.counts()["spent"] == 1)
    assert len(server.requests) == made.counts()["requests"] == 3 and made.counts()["queue"] == 1
    nothing = service(max_requests=0)
    nothing.exchange(said("a key"))
    until(lambda: nothing.counts()["spent"] == 1)
    assert len(server.requests) == 3


def test_the_cost_stays_capped_after_a_restart(serve, service, tmp_path):
    server, cache = serve(), str(tmp_path / "labels.jsonl")
    # A reply takes 10 tokens and may take 1000.
    settings = {"cache": cache, "completion_price": 1e6, "max_tokens": 1000, "max_cost": 1025.0, "batch": 1}
    made = service(**settings)
    assert gathered(made, 1, "key 1") == {"key 1": 1.0}
    assert gathered(made, 1, "key 2") == {"key 2": 1.0}
    made.exchange(said("key 3"))
    until(lambda: made.counts()["spent"] == 1)
    assert made.counts()["cost"] == 30.0 and len(server.requests) == 3
    # A second run with this file has no budget left from the start, and has the labels that were bought.
    again = service(**settings)
    assert gathered(again, 1, "key 1", "key 3") == {"key 1": 1.0}
    until(lambda: again.counts()["spent"] == 1)
    assert len(server.requests) == 3
    # A reply without its cost counts as the most that it may have cost.
    serve(says("1: 1", usage=False))
    silent = service(**settings | {"cache": str(tmp_path / "other.jsonl"), "max_cost": 10_000.0})
    assert silent.counts()["cost"] == 1000.0


def test_nothing_is_asked_twice_after_a_kill(serve, service, tmp_path):
    server, cache = serve(), tmp_path / "labels.jsonl"
    made = service(cache=str(cache))
    gathered(made, 2, "key 1", "key 2")
    # A killed run leaves half a line, and another run with the same file appends to it.
    content = cache.read_bytes()
    cache.write_bytes(content + b'{"key": "00", "la')
    again = service(cache=str(cache))
    assert gathered(again, 3, "key 2", "key 3", "key 1") == {"key 1": 1.0, "key 2": 1.0, "key 3": 1.0}
    assert again.counts()["cached"] == 2 and server.asked[-1] == ['1: "key 3"']
    lines = cache.read_bytes().split(b"\n")
    assert sum(b"key 3" in line and json.loads(line)["label"] == 1 for line in lines) == 1
    asked = len(server.requests)
    other = service(cache=str(cache), goal="find walls")
    assert gathered(other, 1, "key 1") == {"key 1": 1.0} and len(server.requests) == asked + 2


def test_concurrent_runs_share_labels_and_budget(serve, service, tmp_path):
    server, cache = serve(), str(tmp_path / "labels.jsonl")
    one, other = (service(cache=cache, batch=1, max_requests=5) for _ in range(2))
    assert gathered(one, 2, "key 1", "key 2") == {"key 1": 1.0, "key 2": 1.0}
    asked = len(server.requests)
    assert gathered(other, 2, "key 2", "key 1") == {"key 1": 1.0, "key 2": 1.0}
    assert len(server.requests) == asked == 4 and other.counts()["cached"] == 2
    # The two share a budget of one more request.
    assert gathered(other, 1, "key 3") == {"key 3": 1.0}
    assert gathered(one, 1, "key 4", "key 3") == {"key 3": 1.0}
    until(lambda: one.counts()["spent"] == 1)
    assert len(server.requests) == one.counts()["requests"] == 5


def test_a_state_saved_during_a_request_loses_nothing(serve, service, tmp_path):
    serve(fine, hangs)
    made = service(timeout=20.0, batch=1)
    made.exchange(said("key 1"))
    until(lambda: made.counts()["requests"] == 1 and made.counts()["queue"] == 1)
    made.exchange(said("key 2", "key 3"))
    state = made.state()
    serve()
    again = service(state=state)
    assert gathered(again, 3, "key 1", "key 2") == {"key 1": 1.0, "key 2": 1.0, "key 3": 1.0}
    assert again.counts()["messages"] == 5


def test_a_full_disk_does_not_stop_the_labels(serve, service, tmp_path):
    serve()
    made = service(cache=str(tmp_path / "folder" / "labels.jsonl"))
    (tmp_path / "folder" / "labels.jsonl").unlink()
    (tmp_path / "folder" / "labels.jsonl").mkdir()
    assert gathered(made, 1, "a key") == {"a key": 1.0} and made.counts()["unsaved"] > 0
    with pytest.raises(UserError, match=r"cannot write .*labels.jsonl: Is a directory"):
        Cache(tmp_path / "folder" / "labels.jsonl").open()


def test_a_defect_of_the_thread_is_raised(serve, service, monkeypatch):
    serve()
    made = service()
    monkeypatch.setattr(Http, "_ask_patiently", lambda self, questions: 1 // 0)
    made.exchange(said("a key"))
    with pytest.raises(ZeroDivisionError):
        gathered(made, 1)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, f"answers 401 (Unauthorized): expected a key that it knows in {KEY}"),
        (403, f"answers 403 (Forbidden): expected a key that it knows in {KEY}"),
        (404, f"answers 404 (Not Found): expected another {URL} or {MODEL}"),
        (400, "answers 400"),
        (302, "answers 302"),
    ],
)
@pytest.mark.parametrize("location", ["http://127.0.0.1:9/elsewhere", "http://[::1"])
def test_an_endpoint_that_refuses_at_the_start_is_one_message(status, words, location, serve, service):
    server = serve(fails(status, ("Location", location)))
    with pytest.raises(UserError) as caught:
        service()
    assert words in str(caught.value) and f"http://127.0.0.1:{server.port}" in str(caught.value)
    assert SECRET not in str(caught.value) and len(server.requests) == 1


def repeats_the_key(status):
    """Says the key that it was sent in the reason, in a header and in the body."""

    def answer(server, handler, body):
        handler.send_response(status, f"no {SECRET}")
        handler.send_header("WWW-Authenticate", SECRET)
        handler.end_headers()
        handler.wfile.write(SECRET.encode())

    return answer


def repeats_the_key_in_no_protocol(server, handler, body):
    handler.wfile.write(f"HTTP/9 {SECRET} {SECRET}\r\n\r\n".encode())


@pytest.mark.parametrize("answer", [*map(repeats_the_key, (400, 401, 403, 404, 418)), repeats_the_key_in_no_protocol])
def test_a_key_that_the_server_repeats_is_not_shown(answer, serve, service):
    server = serve(answer)
    with pytest.raises(UserError, match=r"answers 4\d\d|nobody answers at") as caught:
        service()
    assert SECRET in server.requests[0][1]["Authorization"] and SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "counted"),
    [
        (fails(503), "http_errors"),
        (fails(429), "http_errors"),
        (hangs, "timeouts"),
        (dawdles, "timeouts"),
        (says(b"<html>"), "garbage"),
        (says("?"), None),
    ],
)
def test_an_endpoint_that_is_busy_at_the_start_is_asked_later(first, counted, serve, service):
    serve(first, fine)
    made = service()
    assert gathered(made, 1, "a key") == {"a key": 1.0}
    assert counted is None or made.counts()[counted] == 1


def test_an_endpoint_that_is_unreachable_at_the_start(serve, service):
    serve().close()
    with pytest.raises(UserError, match=rf"nobody answers at http://127.0.0.1:\d+ \(.*refused.*\): expected .* {URL}"):
        service()


def test_a_proxy_that_cannot_be_used_is_one_message(serve, service, monkeypatch):
    serve()
    for proxy in ("socks5://127.0.0.1:9", "nonsense://127.0.0.1:9"):
        monkeypatch.setenv("ALL_PROXY", proxy)
        with pytest.raises(UserError, match=r"nobody answers at http://127.0.0.1:\d+ \("):
            service()


def test_a_small_reply_cannot_unpack_to_a_large_one(serve, service):
    packed = gzip.compress(chat("1: 1") + b" " * 2**24)
    server = serve(fine, lambda _, handler, body: reply(handler, 200, packed, [("Content-Encoding", "gzip")]), fine)
    made = service()
    assert gathered(made, 1, "a key") == {"a key": 1.0} and made.counts()["garbage"] == 1
    assert server.requests[0][1]["Accept-Encoding"] == "identity"


def test_an_annotator_starts_in_a_notebook_whose_loop_runs(serve, service):
    serve()

    async def cell():
        return service()

    assert gathered(asyncio.run(cell()), 1, "a key") == {"a key": 1.0}


@pytest.mark.parametrize("package", ["httpx2", "tenacity"])
def test_without_the_extra_a_run_is_refused_before_any_work(package, serve, monkeypatch, tmp_path, capsys):
    server = serve()
    monkeypatch.setitem(sys.modules, package, None)
    assert command(config_of(), monkeypatch, tmp_path / "runs") == 2
    error = capsys.readouterr().err
    assert "annotator kind 'http'" in error and package in error and "pip install -e '.[annotator]'" in error
    assert server.requests == [] and not (tmp_path / "runs").exists()


ENVIRONMENT = {
    "no address": ({URL: ""}, f"the environment lacks {URL}: expected the base URL"),
    "no model": ({MODEL: " "}, f"the environment lacks {MODEL}"),
    "nothing": ({URL: "", MODEL: ""}, f"lacks {URL} and {MODEL}"),
    "a file": ({URL: "file:///etc/passwd"}, f"{URL} is no address"),
    "a bare name": ({URL: "localhost:8000"}, f"{URL} is no address"),
    "a port": ({URL: "http://localhost:port/v1"}, f"{URL} is no address"),
    "half a bracket": ({URL: "http://[::1/v1"}, f"{URL} is no address"),
    "an empty label": ({URL: "http://a..b/v1"}, f"{URL} is no address"),
    "a long label": ({URL: f"http://{'a' * 64}/v1"}, f"{URL} is no address"),
    "a query": ({URL: "http://localhost/v1?key=hidden"}, f"{URL} is no address"),
    "a fragment": ({URL: "http://localhost/v1#hidden"}, f"{URL} is no address"),
    "a password": ({URL: "http://me:hidden@localhost/v1"}, f"{URL} is no address"),
    "two lines": ({KEY: "hidden\r\nX-Other: 1"}, f"{KEY} has characters that no key has"),
}


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_a_bad_environment_variable_is_named(name, serve, service, monkeypatch):
    server = serve()
    changes, words = ENVIRONMENT[name]
    for variable, value in changes.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as caught:
        service()
    assert words in str(caught.value) and "hidden" not in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 0}, "batch=0: expected at least 1"),
        ({"timeout": 0.0}, "timeout=0.0.*timeout above 0"),
        ({"shortest_wait": 2.0}, "shortest_wait=2.0, longest_wait=0.05"),
        ({"max_cost": -1.0}, "max_cost=-1.0: expected at least 0"),
        ({"max_cost": float("nan")}, "max_cost=nan: expected at least 0"),
        ({"prompt_price": float("inf")}, "prompt_price=inf: expected at least 0"),
        ({"goal": " "}, "goal=' ': expected a sentence"),
    ],
)
def test_arguments_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Http(**QUICK | settings)


def test_replies_are_read_strictly():
    assert read_labels("1: 1\n2. 0\n 3) 1 \n**4: 0**", 4, 1) == [1.0, 0.0, 1.0, 0.0]
    assert read_labels("1: 2\n2: tie\n3: TIE.\n4: 1", 4, 2) == [0.0, 0.5, 0.5, 1.0]
    assert read_labels("1: tie\n2: 2\n3: 0.5\n4: 1 because\n5", 5, 1) == [None] * 5
    assert read_labels("3: 1\n0: 1\n-1: 1", 2, 1) == [1.0, None]


def test_no_message_looks_like_a_line():
    assert listing([(b"x\n2: 1",), (b"\xff y",)]) == '1: "x\\n2: 1"\n2: "\\ufffd y"'


# --- in a run ------------------------------------------------------------------------------------------


def command(config, monkeypatch, runs):
    corridor.register(monkeypatch)
    talking.register(monkeypatch)
    monkeypatch.setattr(registry, "load", lambda _: corridor.loaded(config, "talking"))
    return run.main(["talking", f"--runs={runs}"])


def config_of(**settings):
    config = talking.config_of("retrieval", kind="http", **QUICK | settings)
    config.evaluate_every = 1
    return config


def test_a_run_goes_on_when_the_annotator_disappears_and_continues_with_another(serve, monkeypatch, tmp_path, capsys):
    gone = threading.Event()

    def answers_once(server, handler, body):
        reply(handler, 200, chat("\n".join(f"{n}: 1" for n in range(1, 21))))
        threading.Thread(target=lambda: (server.close(), gone.set())).start()

    serve(fine, answers_once)
    config = config_of(batch=1)
    original = AnnotationService.exchange

    def exchange(self, trajectory):
        # When the second rollout ends, the server is gone.
        if self.counts()["messages"]:
            gone.wait(10)
            until(lambda: self.counts()["unreachable"] > 0)
        return original(self, trajectory)

    monkeypatch.setattr(AnnotationService, "exchange", exchange)
    assert command(config, monkeypatch, tmp_path) == 0
    folder = tmp_path / "talking" / "default"
    rows = corridor.rows_of(folder)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    last = rows[-1]
    assert last["annotator/unreachable"] > 0 and last["annotator/labels"] == last["reward/language/labels"] == 1
    assert last["annotator/queue"] > 0 and last["train/rejected_updates"] == 0
    monkeypatch.undo()
    # Nothing was forgotten: waiting questions are asked when the run continues with another server.
    with pytest.MonkeyPatch.context() as patch:
        server = Server(fine)
        patch.setenv(URL, f"http://127.0.0.1:{server.port}/v1")
        patch.setenv(MODEL, "reader-1")
        # Its budget and its number of iterations may differ.
        config.iterations, config.annotator.max_requests = 8, 500

        def answered(self, trajectory):
            until(lambda: self.counts()["queue"] == 0)
            return original(self, trajectory)

        patch.setattr(AnnotationService, "exchange", answered)
        assert command(config, patch, tmp_path) == 0
        server.close()
    last = corridor.rows_of(folder)[-1]
    asked = {json.loads(line.partition(": ")[2]) for lines in server.asked[1:] for line in lines}
    assert last["annotator/queue"] == 0 and last["annotator/labels"] == 1 + len(asked) > 1


def test_a_wrong_key_is_one_line_before_training_and_a_finished_run_asks_nothing(serve, monkeypatch, tmp_path, capsys):
    server = serve(fails(401))
    config = config_of()
    assert command(config, monkeypatch, tmp_path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the annotator at http://127.0.0.1") and "401" in error and SECRET not in error
    server.close()
    assert command(config, monkeypatch, tmp_path) == 2
    assert "nobody answers at http://127.0.0.1" in capsys.readouterr().err
    # A refusal leaves nothing behind.
    assert list(tmp_path.iterdir()) == []
    serve()
    assert command(config, monkeypatch, tmp_path) == 0
    server = serve(fails(401))
    assert command(config, monkeypatch, tmp_path) == 0
    assert server.requests == []
    [cache] = tmp_path.rglob("annotations.jsonl")
    assert cache.parent == tmp_path / "talking" / "default"


def test_the_section_is_checked_before_anything_is_asked(serve, monkeypatch):
    server = serve()
    talking.register(monkeypatch)
    config = config_of(batch=0)
    with pytest.raises(UserError, match="section 'annotator': batch=0"):
        build_annotation(config, build_environment(config))
    assert build_annotation(config_of(), build_environment(config)) is not None
    assert server.requests == []


def test_a_port_that_answers_nothing_http(service, monkeypatch, serve):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                connection.sendall(b"SSH-2.0-hello\r\n")
                connection.close()

        threading.Thread(target=greet, daemon=True).start()
        monkeypatch.setenv(URL, f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv(MODEL, "reader-1")
        with pytest.raises(UserError, match="nobody answers at"):
            service()
