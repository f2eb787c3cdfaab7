"""``python -m stopgrad board FOLDER``: TensorBoard with short names, one colour an arm, metrics and flow first.

Runs are named by the folders that they lie in, which wrap over four lines. So TensorBoard gets a folder of links,
``ARM/SEED`` and ``ARM/mean``; what is pinned, and the colours, stand in the address that is printed.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from stopgrad.compare.boards import FOLDER
from stopgrad.compare.read import run_folders
from stopgrad.compare.tags import FIRST

BY_ARM = "regex:^(.*)/"  # of runs whose names agree up to the last slash, TensorBoard draws all in one colour
PICTURES = ("flow/picture", "flow/matrix")  # the first that there is
MOST = 3  # curves that are pinned
USUAL = ("Serving TensorBoard", "TensorFlow installation", "experimental fast", "load_fast", "tensorboard/issues/4784")
EVERY = 5.0  # seconds between two looks for new runs


def board(folder: Path, arguments: Sequence[str]) -> int:
    """Serve TensorBoard on the runs below a folder, also on those that come; Ctrl-C ends it.

    Args:
        arguments: further ones of TensorBoard's.

    Raises:
        ValueError: TensorBoard is not installed; the folder is not there, or holds no run.
    """
    if find_spec("tensorboard") is None:
        raise ValueError("board: tensorboard is not installed: pip install 'stopgrad[compare]'")
    if not names(folder):
        raise ValueError(f"{folder}: {'no run below it' if folder.is_dir() else 'no such directory'}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended so, it clears away too
    with tempfile.TemporaryDirectory(prefix="stopgrad-board-") as links:
        link(folder, Path(links))
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", links, *arguments]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            over = threading.Event()
            following = threading.Thread(target=_follow, args=(folder, Path(links), over), daemon=True)
            following.start()
            try:
                _tell(server, address(folder))
                return server.wait()
            except KeyboardInterrupt:
                return 130
            finally:
                over.set()
                server.terminate()
                following.join()
                signal.signal(signal.SIGTERM, before)


def names(folder: Path) -> dict[str, Path]:
    """``ARM/SEED`` of each run below the folder, and ``ARM/mean`` of a comparison; with more before it where that is
    needed to tell two apart."""
    found = [(path, f"{path.parent.name}/{path.name.removeprefix('seed-')}") for path in run_folders(folder)]
    arms = sorted({path.parent for path in folder.glob("**/events.out.tfevents.*")})
    found += [(path, f"{path.name}/mean") for path in arms if path.resolve().parent.name == FOLDER]
    named: dict[str, Path] = {}
    for path, short in found:
        above = path.parents[1].relative_to(folder) if path.parents[1].is_relative_to(folder) else Path()
        alike = sum(other == short for _, other in found) > 1
        named["-".join([*above.parts, short]) if alike else short] = path
    return dict(sorted(named.items()))


def link(folder: Path, links: Path) -> None:
    """Link each run that is not linked yet."""
    for name, path in names(folder).items():
        place = links / name
        if not place.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve(), target_is_directory=True)


def _follow(folder: Path, links: Path, over: threading.Event) -> None:
    while not over.wait(EVERY):
        link(folder, links)


def address(folder: Path) -> str:
    """What follows TensorBoard's own address: one colour an arm, the metrics and the flow picture pinned."""
    pinned = json.dumps([*pins(names(folder))], separators=(",", ":"))
    return f"?runColorGroup={quote(BY_ARM)}&pinnedCards={quote(pinned)}&smoothing=0#timeseries"


def pins(named: dict[str, Path]) -> Iterator[dict[str, str | int]]:
    """The cards to pin: of the metrics the first, and the picture of the first run that has one."""
    tags = {name: tags_in(path) for name, path in named.items()}
    metrics = dict.fromkeys(tag for found in tags.values() for tag in found if tag.startswith(FIRST))
    order = declared(named.values())
    for tag in sorted(metrics, key=lambda tag: order.index(tag) if tag in order else len(order))[:MOST]:
        yield {"plugin": "scalars", "tag": tag}
    for picture in PICTURES:
        for name, found in tags.items():
            if picture in found:
                yield {"plugin": "images", "tag": picture, "runId": f"defaultExperimentId/{name}", "sample": 0}
                return


def declared(folders: Iterable[Path]) -> list[str]:
    """The tags of what the first run that has ended is judged by, the most telling first, as its recipe declares."""
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return [FIRST + name for name in json.loads((folder / "result.json").read_text())["metrics_declared"]]
    return []


def tags_in(folder: Path) -> list[str]:
    """The tags of a run's curves and pictures, in the order in which they were first logged."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[str, None] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            found |= dict.fromkeys(value.tag for value in event.summary.value)
    return [*found]


def _tell(server: subprocess.Popen[str], after: str) -> None:
    """Print the address at which it answers, with what is pinned; and everything else that it says."""
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"(http://\S+?)/? \(", line):
            print(f"{found[1]}/{after}\n(Ctrl-C ends it)", flush=True)
        elif line.strip() and not any(word in line for word in USUAL):
            print(line, end="", file=sys.stderr)
