"""`python -m d4c.runtime FOLDER IMAGE LABEL…`: what `d4c classify` does, with nothing but the runtime installed."""

from __future__ import annotations

import argparse
import json
import sys
from typing import NoReturn

from d4c.errors import D4CError, UsageError
from d4c.runtime.session import Session


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong as every command does: one line, exit code 2."""
        raise UsageError(message)


def main() -> None:
    """Print a line for each label; an error is one line on stderr and an exit code."""
    parser = _Parser("python -m d4c.runtime", description="Say which label fits a picture.", allow_abbrev=False)
    parser.add_argument("folder", help="an exported folder")
    parser.add_argument("image", help="a picture")
    parser.add_argument("labels", nargs="+", metavar="label", help="what it may show")
    parser.add_argument("--template", help="a text with {c} where the label goes; default: the folder's")
    parser.add_argument("--storage", help="int8 or int4, where the folder holds both")
    parser.add_argument("--threads", type=int, help="of the processor")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    try:
        given = parser.parse_args()
        session = Session(given.folder, given.storage, given.threads)
        (found,) = session.classify(given.image, given.labels, given.template)
    except (D4CError, OSError) as error:  # OSError: a name too long, say
        sys.stderr.write(f"Error: {' '.join(str(error).split())}\n")
        sys.exit(getattr(error, "exit_code", 1))
    lines = [json.dumps(found, indent=1)] if given.json else [f"{p:7.2%}  {label}" for label, p in found.items()]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
