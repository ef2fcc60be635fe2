import hashlib
import http.server
import threading
import zipfile

import pytest

from cerebra_jax.config import TaskCfg
from cerebra_jax.tasks.task import SPLITS
from cerebra_jax.tasks.text import corpus, download

DATA = bytes(i * i % 251 for i in range(200_000))
SHA = hashlib.sha256(DATA).hexdigest()
LIMIT = 300_000


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves /good /noranges /cut (closes after 50 kB) /corrupt /huge /liar (wrong range) /gone."""

    def do_GET(self):
        kind = self.path.strip("/")
        self.server.asked.append((kind, self.headers["Range"]))
        if kind == "gone":
            return self.send_error(403)
        data = self.server.files.get(kind, DATA)
        if kind == "corrupt":
            data = DATA[:-1] + b"!"
        if kind == "huge":
            data = DATA * 9
        start, _, stop = self.headers["Range"].removeprefix("bytes=").partition("-")
        start, stop = int(start), int(stop) + 1 if stop else len(data)
        if kind == "noranges":
            self.send_response(200)
            start, stop = 0, len(data)
        elif start >= len(data):
            return self.send_error(416)
        else:
            self.send_response(206)
            first = start + (kind == "liar")
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{len(data)}")
        body = data[start:stop]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body[:50_000] if kind == "cut" else body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client had enough

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.asked, server.files = [], {}
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    server.url = lambda kind: f"http://127.0.0.1:{server.server_port}/{kind}"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(server, target, *kinds):
    return download.fetch([server.url(k) for k in kinds], target, SHA, LIMIT, lambda line: None)


MIXES = (
    ["good"],
    ["noranges"],
    ["gone", "good"],
    ["corrupt", "good"],
    ["huge", "good"],
    ["cut", "good"],
    ["liar", "good"],
    ["cut", "cut"],
    ["corrupt", "cut", "noranges"],
)


@pytest.mark.parametrize("kinds", MIXES)
def test_the_file_arrives_whole_from_some_mirror(server, tmp_path, kinds):
    target = fetch(server, tmp_path / "f.zip", *kinds)
    assert target.read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["f.zip"]


@pytest.mark.parametrize("kinds", [["corrupt"], ["gone", "gone"], ["huge"], ["corrupt", "gone"]])
def test_no_good_mirror_leaves_no_file_and_says_why(server, tmp_path, kinds):
    with pytest.raises(download.Unavailable, match=r"127\.0\.0\.1.*: .+"):
        fetch(server, tmp_path / "f.zip", *kinds)
    assert not (tmp_path / "f.zip").exists()


def test_a_stopped_download_is_resumed_later_and_elsewhere(server, tmp_path):
    with pytest.raises(download.Unavailable, match="connection closed after 150000 of 200000"):
        fetch(server, tmp_path / "f.zip", "cut")  # three tries of 50 kB
    server.asked.clear()
    assert fetch(server, tmp_path / "f.zip", "good").read_bytes() == DATA
    assert ("good", "bytes=150000-") in server.asked


def test_a_file_larger_than_its_limit_is_not_read_on(server, tmp_path):
    with pytest.raises(download.Unavailable, match=f"larger than {LIMIT} bytes"):
        fetch(server, tmp_path / "f.zip", "huge")
    assert (tmp_path / "f.zip.part").stat().st_size <= LIMIT


def test_what_is_there_survives_a_mirror_that_sends_another_range(server, tmp_path):
    (tmp_path / "f.zip.part").write_bytes(DATA[:100_000])
    fetch(server, tmp_path / "f.zip", "liar", "good")
    assert ("good", "bytes=100000-") in server.asked


def test_a_mirror_that_cannot_resume_sends_the_file_once(server, tmp_path):
    (tmp_path / "f.zip.part").write_bytes(DATA[:100_000])
    fetch(server, tmp_path / "f.zip", "noranges")
    assert [asked for asked in server.asked if asked[1] != "bytes=0-0"] == [
        ("noranges", "bytes=100000-")
    ]


@pytest.mark.parametrize("part", [b"x" * 150_000, DATA + b"more", DATA])
def test_a_part_of_another_file_is_thrown_away(server, tmp_path, part):
    (tmp_path / "f.zip.part").write_bytes(part)
    assert fetch(server, tmp_path / "f.zip", "good").read_bytes() == DATA


def test_a_file_that_is_there_is_not_asked_for_and_a_damaged_one_is_replaced(server, tmp_path):
    (tmp_path / "f.zip").write_bytes(DATA)
    fetch(server, tmp_path / "f.zip", "good")
    assert not server.asked
    (tmp_path / "f.zip").write_bytes(DATA[:-1])
    assert fetch(server, tmp_path / "f.zip", "good").read_bytes() == DATA


def test_a_mirror_that_never_answers_does_not_hold_the_others_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ANSWER_S", 0.3)
    urlopen, release = download.urllib.request.urlopen, threading.Event()

    def hang(request, timeout):
        if request.full_url.startswith("http://dead"):
            release.wait(20)  # as a name server that does not answer: no timeout of ours ends it
        return urlopen(request, timeout=timeout)

    monkeypatch.setattr(download.urllib.request, "urlopen", hang)
    urls = ["http://dead.invalid/f", server.url("good")]
    try:
        assert (
            download.fetch(urls, tmp_path / "f", SHA, LIMIT, lambda line: None).read_bytes() == DATA
        )
        with pytest.raises(download.Unavailable, match=r"dead\.invalid: no answer"):
            download.fetch(urls[:1], tmp_path / "g", SHA, LIMIT, lambda line: None)
    finally:
        release.set()


def test_wikitext_is_read_from_the_pinned_zip_and_nothing_else_is_written(
    server, tmp_path, monkeypatch
):
    texts = {split: f" {split} <unk> text \n".encode() for split in SPLITS}
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as z:
        z.writestr("../evil.txt", "out")
        for split, text in texts.items():
            z.writestr(f"wikitext-2/wiki.{split}.tokens", text)
    server.files["zip"] = (tmp_path / "made.zip").read_bytes()
    pin = corpus.ARCHIVES["wikitext2"]._replace(
        urls=(server.url("gone"), server.url("zip")),
        sha256=hashlib.sha256(server.files["zip"]).hexdigest(),
    )
    monkeypatch.setitem(corpus.ARCHIVES, "wikitext2", pin)
    cache = tmp_path / "deep" / "downloads"
    source = corpus.find(TaskCfg(), lambda key: False, cache, lambda line: None)
    assert source.dataset == "wikitext2" and source.notice == ""
    for split, text in texts.items():
        with source.open(split) as stream:
            assert stream.read() == text
    assert len(list((tmp_path / "deep").rglob("*"))) == 2  # the folder and the zip
    server.asked.clear()
    corpus.find(TaskCfg(), lambda key: key == pin.sha256, cache, lambda line: None)
    assert not server.asked  # prepared before: the network is left alone
