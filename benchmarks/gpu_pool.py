"""Items in processes of their own, each with a limit of time; what is finished is kept, and is not done again."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

PROCESSES = multiprocessing.get_context("spawn")


class Item(NamedTuple):
    """``function(**arguments)``, which returns whether it holds (``ok``), words (``said``) and figures; in seconds."""

    name: str
    function: Callable[..., dict[str, Any]]
    arguments: Mapping[str, Any]
    limit: float = 60.0


class Record:
    """What is known of each item, in a file that is written whole after each."""

    def __init__(self, file: Path, head: Mapping[str, Any]) -> None:
        self.file, self.lock = file, threading.Lock()
        kept = json.loads(file.read_text()) if file.exists() else {"items": {}}
        self.content: dict[str, Any] = {**head, "items": kept["items"]}

    def add(self, name: str, found: Mapping[str, Any]) -> None:
        with self.lock:
            self.content["items"][name] = dict(found)
            half_written = self.file.with_name(f".{self.file.name}.tmp")
            half_written.write_text(json.dumps(self.content, indent=1) + "\n")
            half_written.replace(self.file)
        print(line(name, found), flush=True)


def line(name: str, found: Mapping[str, Any]) -> str:
    """An item in one line."""
    return f"{'ok ' if found['ok'] else 'NOT'} {name:44} {found['seconds']:6.1f} s  {found['said']}"


def run(items: Iterable[Item], record: Record, workers: int, deadline: float) -> None:
    """Run the items, so many at a time, until the ``deadline`` of time.monotonic(): none begins after it."""
    waiting, lock = iter(list(items)), threading.Lock()

    def serve() -> None:
        worker = None
        while True:
            with lock:
                item = next(waiting, None)
            left = deadline - time.monotonic()
            if item is None or left <= 0:
                break
            worker = worker or _Worker(left)
            began, limit = time.monotonic(), min(item.limit, left)
            found = worker.ask(item, limit)
            if "error" in found:  # what a failure left of a GPU's context is not to be trusted
                worker = worker.end()
                found = {"ok": False, "said": found["error"].strip().splitlines()[-1][:300], **found}
            record.add(item.name, {**found, "seconds": round(time.monotonic() - began, 2)})
        if worker is not None:
            worker.end()

    threads = [threading.Thread(target=serve) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _Worker:
    def __init__(self, patience: float) -> None:
        self.pipe, far = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=_work, args=(far,), daemon=False)
        self.process.start()
        far.close()
        self.ready = self.pipe.poll(patience) and self.pipe.recv()  # all is imported, which is no part of an item

    def ask(self, item: Item, limit: float) -> dict[str, Any]:
        if not self.ready:
            return {"error": "its process did not begin"}
        self.pipe.send((item.function, dict(item.arguments)))
        if not self.pipe.poll(limit):
            return {"error": f"not finished after {limit:.0f} s"}
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            return {"error": f"its process ended with exit code {self.process.exitcode}"}

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _work(pipe: Any) -> None:
    pipe.send(True)
    with suppress(EOFError):  # the pipe is closed
        while True:
            function, arguments = pipe.recv()
            try:
                answer = function(**arguments)
            except Exception:
                answer = {"error": traceback.format_exc()}
            pipe.send(answer)
    os._exit(0)  # without the clearing up of a device
