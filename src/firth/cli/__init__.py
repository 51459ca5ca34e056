"""The command line: ``firth VERB ...``; one file a verb, and one door for every error.

Exit codes: 0 done, 1 a failed run, 2 a wrong call, 130 Ctrl-C. Results go to stdout, progress and
errors to stderr; an error is one sentence after ``firth: `` and never a traceback.
"""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn, TextIO, cast

from firth.errors import FirthError, did_you_mean

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command of ``argv`` (by default that of this process) and exit."""
    # A token may hold what the terminal's encoding does not: show it escaped and go on.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))


def run(argv: Sequence[str]) -> int:
    """Run the command of ``argv`` (without the program's name); the exit code."""
    try:
        return _run(argv)
    except FirthError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _fail("out of memory; a smaller --dim, --max-vocab or --restrict takes less", 1)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        return _fail(f"cannot read or write{place}: {error.strerror or error}", 1)


def _run(argv: Sequence[str]) -> int:
    import typer

    from firth.cli.app import command

    # Usage errors have no public name in typer; that of a bad parameter is one kind of them.
    usage_error = cast(type[Exception], typer.BadParameter.__mro__[1])
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = command().main(args=list(argv), prog_name="firth", standalone_mode=False)
        except typer.Abort:
            return INTERRUPTED
        except usage_error as error:
            return _fail(_usage_sentence(error, argv), 2)
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as a sentence, in the place of ``warnings.showwarning``."""
    from firth.cli.output import printable

    print(f"firth: warning: {printable(str(message))}", file=sys.stderr)


def _fail(sentence: str, code: int) -> int:
    from firth.cli.output import printable

    print(f"firth: {printable(sentence)}", file=sys.stderr)
    return code


def _usage_sentence(error: Exception, argv: Sequence[str]) -> str:
    """A wrong call as one sentence: what was wrong, what is near, where the help is."""
    from firth.cli.app import GROUPS, VERBS

    context = getattr(error, "ctx", None)
    name = context.command_path if context is not None else "firth"
    verb, inner = [*(word for word in argv if not word.startswith("-")), None, None][:2]
    group = GROUPS.get(verb or "")
    wrong = getattr(error, "option_name", None)
    before, asked, known = "firth", verb, [*VERBS, *GROUPS]
    if group is not None:
        before, asked, known = f"firth {verb}", inner, list(group.VERBS)
    if asked is not None and asked not in known:
        sentence = f"{before} has no verb {asked!r}{did_you_mean(difflib.get_close_matches(asked, known))}"
    elif wrong is not None and hasattr(error, "possibilities"):  # an option that does not exist
        sentence = f"{name} has no option {wrong}{did_you_mean(error.possibilities or ())}"
    else:
        text = getattr(error, "format_message", error.__str__)()
        text = " ".join(text.split()).rstrip(".")
        sentence = text[:1].lower() + text[1:]
    return f"{sentence} (see {name} --help)"
