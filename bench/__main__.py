"""`make bench`: points per second of `vecrun apply` against a hand-written loop over the same clients, and memory.

vecrun's figure is the copy step of a real `vecrun apply` process (begin to end, as its ledger says), checkpoints
included. The loop reads a page, converts it, writes it, commits, in one thread, as one would write it by hand with the
same client and batch size, without checkpoints. Both run in turn in the same session; only the ratio means anything.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import backup_points, backup_tables, documents, embedding, memory, pairs, sql, workers

#: Beside the pairs: memory of a large copy; 1, 2 and 4 workers against one process; many small points through workers;
#: a change of the model against a loop that calls it, and what a crash of it costs; documents tagged and deleted against
#: the store's own bulk call; tables backed up and restored against pg_dump, pg_restore and \copy; collections
#: against bare Arrow loops; rows inside of a relational database against one statement, and against a loop.
OTHERS = ("memory", "workers", "small", "embedding", "documents", "backup-tables", "backup-points", "sql")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("pairs", nargs="*", choices=[*pairs.PAIRS, *OTHERS, []], help="only these [default: all]")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual number of points")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each pair; the median ratio is printed")
    arguments = parser.parse_args()
    wanted = arguments.pairs or [*pairs.PAIRS, *OTHERS]
    folder = Path(".bench").resolve()
    pairs.run([name for name in wanted if name not in OTHERS], folder, arguments.scale, arguments.rounds)
    if "memory" in wanted:
        memory.run(folder, arguments.scale)
    if "workers" in wanted:
        workers.scaling(folder, arguments.scale, arguments.rounds)
    if "small" in wanted:
        workers.small(folder, arguments.scale)
    if "embedding" in wanted:
        embedding.run(folder, arguments.scale, arguments.rounds)
    if "documents" in wanted:
        documents.run(folder, arguments.scale, arguments.rounds)
    if "backup-tables" in wanted:
        backup_tables.run(folder, arguments.scale, arguments.rounds)
    if "backup-points" in wanted:
        backup_points.run(folder, arguments.scale, arguments.rounds)
    if "sql" in wanted:
        sql.run(folder, arguments.scale, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
