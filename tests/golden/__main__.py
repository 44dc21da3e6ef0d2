"""`python -m tests.golden --write`: make the golden files anew; look at the difference before it is committed."""

from __future__ import annotations

import sys

from tests.golden.cases import CASES, HERE, forms


def main() -> None:
    write = "--write" in sys.argv
    stale = 0
    for name in CASES:
        for file, content in forms(name).items():
            path = HERE / file
            if not path.exists() or path.read_text() != content:
                stale += 1
                sys.stderr.write(f"{'wrote' if write else 'differs'} {path.name}\n")
                if write:
                    path.write_text(content)
    if stale and not write:
        sys.exit("python -m tests.golden --write makes them anew")


main()
