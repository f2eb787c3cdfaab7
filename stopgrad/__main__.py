"""``python -m stopgrad COMMAND``: the instrument from a shell. Each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any


def explain_command(options: argparse.Namespace) -> int:
    """Print cause and fix of an error message; 1 when it is not known."""
    from stopgrad.explain import answer, tee

    piped = not options.message
    if piped and sys.stdin.isatty():
        raise ValueError('give a message: explain "MESSAGE"; or pipe: python my.py 2>&1 | python -m stopgrad explain')
    found = answer(tee(sys.stdin) if piped else " ".join(options.message))
    if piped:
        print("\n--- stopgrad explain ---")
    print(found or "not known: no message in it is about stopped gradients. `museum` lists what is known")
    return 0 if found else 1


def museum_command(options: argparse.Namespace) -> int:
    """List the exhibits, print a script, or run one; 1 when it did not do what its page says."""
    from stopgrad.museum import exhibit, listing, show

    if options.script:
        print(exhibit(options.name).script(fixed=options.script == "fixed"), end="")
        return 0
    if options.name:
        return show(exhibit(options.name))
    print(listing())
    return 0


def _add_explain(commands: Any) -> None:
    parser = commands.add_parser("explain", help="cause and fix of an error message")
    parser.add_argument("message", nargs="*", help="the message, or nothing to read a program's output from a pipe")
    parser.set_defaults(run=explain_command)


def _add_museum(commands: Any) -> None:
    parser = commands.add_parser("museum", help="failures to run, with and without their fix")
    parser.add_argument("name", nargs="?", help="an exhibit; nothing lists them all")
    parser.add_argument("--script", choices=("broken", "fixed"), help="print that script instead of running it")
    parser.set_defaults(run=museum_command)


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Exit status: 0 fine, 1 the answer is no, 2 the question was wrong."""
    parser = argparse.ArgumentParser(prog="python -m stopgrad", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_explain, _add_museum):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except BrokenPipeError:  # the reader, head or less, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
