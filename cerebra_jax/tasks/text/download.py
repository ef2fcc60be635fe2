"""Downloads one pinned file from several mirrors.

A stopped download is resumed; the file is checked by its sha256 and then renamed into place.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from cerebra_jax.tasks.task import Log

# a mirror answers 403 to urllib's own name
AGENT = {"User-Agent": "Mozilla/5.0 (compatible; cerebra_jax)"}
# how long a mirror may take to answer the first byte: without a network, the user should not wait
ANSWER_S = 2.0
STALL_S = 20.0  # how long a running download may stand still
TRIES = 3  # per mirror; each goes on where the last one stopped
CHUNK = 1 << 16  # bytes


class Unavailable(Exception):
    """No mirror gave the file; the text says why."""


def fetch(urls: Sequence[str], target: Path, sha256: str, limit: int, log: Log = print) -> Path:
    """Returns `target`, from the first of `urls` that gives at most `limit` bytes of this sha256.

    A stopped download stays beside it as NAME.part and is resumed, from any mirror. Raises
    Unavailable.
    """
    if target.exists() and digest(target) == sha256:
        return target
    part = target.with_name(target.name + ".part")
    live, reasons = answering(urls, ANSWER_S)
    for url in live:
        log(f"downloading {url}")
        for _ in range(TRIES):
            resumed = part.exists()
            try:
                _pull(url, part, limit)
            except (OSError, http.client.HTTPException) as err:
                reasons[url] = _reason(err)
                continue
            if digest(part) == sha256:
                os.replace(part, target)
                return target
            part.unlink()
            reasons[url] = "wrong sha256"
            # if a fresh copy is wrong, so is the mirror; else it may be what was resumed
            if not resumed:
                break
    raise Unavailable("; ".join(f"{url.split('/')[2]}: {why}" for url, why in reasons.items()))


def digest(path: Path) -> str:
    """Returns the sha256 of a file, in hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _reason(err: Exception) -> str:
    return str(getattr(err, "reason", None) or err) or type(err).__name__


def _request(url: str, start: int, stop: str = "") -> urllib.request.Request:
    return urllib.request.Request(url, headers=AGENT | {"Range": f"bytes={start}-{stop}"})


def answering(urls: Sequence[str], seconds: float) -> tuple[list[str], dict[str, str]]:
    """Returns the mirrors that answer, in order, and why the others do not; all are asked at once.

    In threads, because looking up a host name has no time limit of its own; daemons, so that none
    outlives the run.
    """
    found: dict[str, str] = {}

    def ask(url: str) -> None:
        try:
            with urllib.request.urlopen(_request(url, 0, "0"), timeout=seconds) as answer:
                answer.read(1)
            found[url] = ""
        except (OSError, http.client.HTTPException) as err:
            found[url] = _reason(err)

    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    reasons = {url: found.get(url, "no answer") for url in urls}
    live = [url for url in urls if not reasons[url]]
    return live, {url: reason for url, reason in reasons.items() if reason}


def _pull(url: str, part: Path, limit: int) -> None:
    """Appends what is missing to `part`.

    OSError where the connection ends early or the file is too large.
    """
    start = part.stat().st_size if part.exists() else 0
    try:
        answer = urllib.request.urlopen(_request(url, start), timeout=STALL_S)
    except urllib.error.HTTPError as err:
        # nothing is missing, or the part is not of this file: the sha256 decides
        if err.code == 416 and start:
            return
        raise

    with answer:
        # 206: the rest of the file; 200: the mirror cannot resume and sends it all
        resumed = answer.status == 206
        sent_range = answer.headers.get("Content-Range", "")
        if resumed and not sent_range.startswith(f"bytes {start}-"):
            raise OSError(f"asked for bytes from {start}, was sent {sent_range or None}")
        size = start if resumed else 0
        expected = size + int(answer.headers.get("Content-Length") or 0)
        with open(part, "ab" if size else "wb") as f:
            while data := answer.read(CHUNK):
                size += len(data)
                if size > limit:
                    f.truncate(0)
                    raise OSError(f"larger than {limit} bytes")
                f.write(data)
    if size < expected:
        raise OSError(f"connection closed after {size} of {expected} bytes")
