"""The commands: ``python -m stopgrad COMMAND``. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import sys


def explain(args: argparse.Namespace) -> int:
    """Print cause and fix of an error message; 1 when it is not known."""
    from stopgrad.explain import answer, tee

    piped = not args.message
    if piped and sys.stdin.isatty():
        print('give a message: python -m stopgrad explain "MESSAGE", or pipe a program\'s output in', file=sys.stderr)
        return 2
    found = answer(tee(sys.stdin) if piped else " ".join(args.message))
    if piped:
        print("\n--- stopgrad explain ---")
    print(
        found or "not known: no message in it is about stopped gradients. python -m stopgrad museum lists what is known"
    )
    return 0 if found else 1


def museum(args: argparse.Namespace) -> int:
    """List the exhibits, or run one."""
    from stopgrad.museum import exhibits, listing, show

    if args.script:
        if args.name not in exhibits():
            show(args.name)
        print(exhibits()[args.name].script(fixed=args.script == "fixed"), end="")
        return 0
    if args.name:
        return show(args.name)
    print(listing())
    return 0


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="python -m stopgrad", description="Which loss reaches what, and what stopped it."
    )
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("explain", help="cause and fix of an error message")
    command.add_argument("message", nargs="*", help="the message, or nothing to read a program's output from a pipe")
    command.set_defaults(run=explain)

    command = commands.add_parser("museum", help="failures to run, with and without their fix")
    command.add_argument("name", nargs="?", help="an exhibit; nothing lists them all")
    command.add_argument("--script", choices=("broken", "fixed"), help="print that script instead of running it")
    command.set_defaults(run=museum)
    return root


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
