"""The museum of failures: each exhibit is one Markdown page in ``museum/exhibits/``, and the page is what runs.

The script on a page is a diff: lines marked ``-`` fail, lines marked ``+`` mend them, the rest is common to both. This
module reads the pages without importing torch; only running an exhibit does.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path

from stopgrad.cuts.strategies import nearest

FOLDER = Path(__file__).parent / "exhibits"
SECTIONS = ("Script", "Message", "Why", "Fix", "Find", "Threads", "Matches")


@dataclass(frozen=True)
class Exhibit:
    """One failure: what is seen, a script that shows it, why it happens and what mends it.

    Attributes:
        name: file name of the page without its suffix.
        title: the page's heading.
        summary: one paragraph: what a person does and sees.
        recipe: the recipe of this project that shows the pattern, or an empty string.
        needs: a package besides torch that the script imports, or an empty string.
        finding: what ``python -m stopgrad run`` says of a silent one's broken script: the exhibit's own name, but where
            the page has a ``- finding: NAME``, since the fault is another's too.
        sections: text of each section of the page by its heading.
    """

    name: str
    title: str
    summary: str
    recipe: str
    needs: str
    finding: str
    sections: dict[str, str]

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.md"

    @property
    def message(self) -> str:
        """What the broken script ends with: ``Type: text``, where ``...`` stands for what differs from run to run."""
        return _fenced(self.sections["Message"])

    @property
    def diff(self) -> str:
        """The script: lines marked ``-`` fail, lines marked ``+`` mend them."""
        return _fenced(self.sections["Script"])

    @property
    def silent(self) -> bool:
        """Torch says nothing: the script's own check is what fails."""
        return not self.patterns

    @property
    def threads(self) -> list[str]:
        """Public threads where people met it, each a link and a remark."""
        return re.findall(r"^- (.+)$", self.sections.get("Threads", ""), re.M)

    @property
    def patterns(self) -> list[str]:
        """Regular expressions of the messages that this exhibit explains; none for a silent one."""
        return [pattern for pattern, _ in self.matches]

    @property
    def matches(self) -> list[tuple[str, str]]:
        """Each pattern with a remark on who else says so (older versions, other libraries), or an empty string."""
        return re.findall(r"^- `(.+)`(?: \((.+)\))?$", self.sections.get("Matches", ""), re.M)

    def _repr_markdown_(self) -> str:
        """For a notebook: the page, without what is read by ``explain`` alone."""
        told = {title: text for title, text in self.sections.items() if title != "Matches"}
        parts = [f"# {self.title}", self.summary, *(f"## {title}\n\n{text}" for title, text in told.items())]
        return "\n\n".join([*parts, f"`python -m stopgrad museum {self.name}` runs it, broken and fixed."])

    def script(self, *, fixed: bool) -> str:
        """The whole script, broken or fixed."""
        return "\n".join(line for line in self._lines(fixed) if line is not None) + "\n"

    def met_by(self, error: BaseException | None) -> bool:
        """Whether ``error`` is the failure that the page promises."""
        if error is None:
            return False
        said = " ".join(f"{type(error).__name__}: {error}".split())
        promised = " ".join(self.message.split())
        return re.match(re.escape(promised).replace(r"\.\.\.", ".*"), said) is not None

    def _lines(self, fixed: bool) -> list[str | None]:
        keep = " +" if fixed else " -"
        diff = self.diff.split("\n")
        return [line[2:] if not line or line[0] in keep else None for line in diff]

    def run(self, *, fixed: bool) -> BaseException | None:
        """Run the script in this process, a UserWarning as an error; return what it raised, or None.

        A traceback names the page and its lines.
        """
        import torch

        before = self.path.read_text(encoding="utf-8").partition("```diff\n")[0].count("\n") + 1
        source = "\n" * before + "\n".join(line or "" for line in self._lines(fixed))
        code = compile(source, str(self.path), "exec")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            torch.manual_seed(0)
            always = torch.is_warn_always_enabled()
            torch.set_warn_always(True)  # torch says some things once per process: here, each time
            try:
                exec(code, {"__name__": "__exhibit__"})
            except Exception as error:
                return error
            finally:
                torch.set_warn_always(always)
                if torch.distributed.is_available() and torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()
        return None


def _fenced(section: str) -> str:
    match = re.search(r"^```\w*\n(.*?)\n```$", section, re.M | re.S)
    if match is None:
        raise ValueError("a fenced block is missing")
    return match[1]


def read(path: Path) -> Exhibit:
    """Read one page.

    Raises:
        ValueError: a heading is missing or unknown.
    """
    head, *parts = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.M)
    sections = {title.strip(): body.strip() for title, _, body in (part.partition("\n") for part in parts)}
    unknown = sections.keys() - set(SECTIONS)
    missing = {"Script", "Message", "Why", "Fix"} - sections.keys()
    if unknown or missing:
        raise ValueError(f"{path.name}: unknown headings {sorted(unknown)}, missing headings {sorted(missing)}")
    title, _, rest = head.partition("\n")
    facts = dict(re.findall(r"^- (\w+): (\w+)$", rest, re.M))
    recipe, needs = (facts.get(key, "none").replace("none", "") for key in ("recipe", "needs"))
    summary = re.sub(r"^- .*$", "", rest, flags=re.M).strip()
    finding = facts.get("finding", path.stem)
    return Exhibit(path.stem, title.removeprefix("# ").strip(), summary, recipe, needs, finding, sections)


@functools.cache
def exhibits() -> dict[str, Exhibit]:
    """All exhibits by name: those with a message first, then the silent ones, each in alphabetical order."""
    read_all = sorted((read(path) for path in FOLDER.glob("*.md")), key=lambda e: (e.silent, e.name))
    return {e.name: e for e in read_all}


def plain(markdown: str, width: int = 100) -> str:
    """A section as terminal text: paragraphs filled to ``width`` columns, lists and code left as they are."""
    blocks = markdown.split("\n\n")
    return "\n\n".join(b if b.startswith(("-", "```", "    ")) else textwrap.fill(b, width) for b in blocks)


def listing() -> str:
    """One line for each exhibit."""
    rooms = {False: "These raise or warn:", True: "These are silent; a check at the script's end shows them:"}
    lines = []
    for silent, heading in rooms.items():
        lines += [heading, *(f"  {e.name:22} {e.title}" for e in exhibits().values() if e.silent is silent), ""]
    return "\n".join([*lines, "python -m stopgrad museum NAME runs one, broken and fixed."])


def exhibit(name: str | None) -> Exhibit:
    """The exhibit of that name.

    Raises:
        ValueError: there is none.
    """
    if name in exhibits():
        return exhibits()[name]
    hint = nearest(name, exhibits())
    raise ValueError(f"no exhibit is named {name!r}{hint}; python -m stopgrad museum lists them")


def show(exhibit: Exhibit) -> int:
    """Print an exhibit, run its script without and with the fix; 0 when both did what the page says."""
    print(f"{exhibit.title}\n\n{plain(exhibit.summary)}\n\n{_coloured(exhibit.diff)}\n")
    if exhibit.needs and importlib.util.find_spec(exhibit.needs) is None:
        print(f"not run: it needs {exhibit.needs} (pip install {exhibit.needs})")
        return 1
    broken, fixed = exhibit.run(fixed=False), exhibit.run(fixed=True)
    print(f"without the fix  {_said(broken)}\nwith the fix     {_said(fixed)}\n")
    print(f"Why\n{plain(exhibit.sections['Why'])}\n\nFix\n{plain(exhibit.sections['Fix'])}")
    if "Find" in exhibit.sections:
        print(f"\nFind the line\n{plain(exhibit.sections['Find'])}")
    if exhibit.threads:
        print("\nSeen in\n" + "\n".join(f"  {thread}" for thread in exhibit.threads))
    return 0 if exhibit.met_by(broken) and fixed is None else 1


def _said(error: BaseException | None) -> str:
    return "passes" if error is None else f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _coloured(diff: str) -> str:
    if not sys.stdout.isatty():
        return diff
    colour = {"-": "\033[31m", "+": "\033[32m"}
    return "\n".join(f"{colour[line[0]]}{line}\033[0m" if line[:1] in colour else line for line in diff.split("\n"))
