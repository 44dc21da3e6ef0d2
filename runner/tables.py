"""The tables of vecrun's own records. What changes here needs a revision in `runner/migrations`; a test compares."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

leases = sa.Table(
    "leases", metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("run", sa.String(32)),  # None: free
    sa.Column("owner", sa.String(255)),
    sa.Column("host", sa.String(255)),
    sa.Column("machine", sa.String(64)),  # kernel and process namespace: where `pid` means something
    sa.Column("pid", sa.Integer),
    sa.Column("since", sa.String(32)),
    sa.Column("renewed", sa.Float(53)),  # seconds since 1970, by the database's clock where it has one
    sa.Column("expires", sa.Float(53)),
)  # fmt: skip
runs = sa.Table(
    "runs", metadata,
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("job", sa.String(64), nullable=False, index=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("of_run", sa.String(32)),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("plan_digest", sa.String(80), nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("executor", sa.String(16), nullable=False, server_default="embedded"),
    sa.Column("lease", sa.Text),  # JSON of the tokens its coordinator holds: what the workers write under
    sa.Column("takeovers", sa.Integer, nullable=False, server_default="0"),  # since a step was finished
    sa.Column("created", sa.String(32), nullable=False),
    sa.Column("started", sa.String(32)),
    sa.Column("finished", sa.String(32)),
    sa.Column("owner", sa.String(255)),
    sa.Column("control", sa.String(16)),  # pause or cancel, asked for from outside; stop, by a worker that met `problem`
    sa.Column("problem", sa.Text),  # JSON of the error
    sa.Column("error", sa.Text),
)  # fmt: skip
steps = sa.Table(
    "steps", metadata,
    sa.Column("run", sa.String(32), sa.ForeignKey("runs.run"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("fingerprint", sa.String(80)),  # of the partition table, once it is cut
    sa.Column("result", sa.Text),
    sa.Column("started", sa.String(32)),
    sa.Column("finished", sa.String(32)),
)  # fmt: skip
partitions = sa.Table(
    "partitions", metadata,
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True),
    sa.Column("keys", sa.Text, nullable=False),  # JSON of the KeyRange
    sa.Column("status", sa.String(16), nullable=False),  # pending, running, done, failed
    sa.Column("cursor", sa.Text),  # JSON of the last id that is durable in the target
    sa.Column("read", sa.BigInteger, nullable=False, default=0),
    sa.Column("done", sa.BigInteger, nullable=False, default=0),
    sa.Column("batches", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("retries", sa.BigInteger, nullable=False, server_default="0"),  # tries after transient errors
    sa.Column("deliveries", sa.Integer, nullable=False, default=0),
    sa.Column("worker", sa.String(255)),  # who works on it
    sa.Column("claim", sa.BigInteger, nullable=False, server_default="0"),  # moves each time it is taken
    sa.Column("taking", sa.String(32)),  # names the call that took it, so that it can be repeated
    sa.Column("queued", sa.Float(53)),  # when a message for it was last sent again
    sa.Column("notes", sa.Text),  # JSON of what its step keeps besides: counts, marks
    sa.Column("error", sa.Text),
)  # fmt: skip
id_map = sa.Table(
    "id_map", metadata,
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("collection", sa.String(255), primary_key=True),  # name in the source
    sa.Column("old", sa.Text, primary_key=True),  # JSON, so that 42 and "42" stay apart
    sa.Column("new", sa.Text, nullable=False),
)  # fmt: skip
findings = sa.Table(
    "findings", metadata,
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("item", sa.String(1024), primary_key=True),  # JSON of the id
    sa.Column("part", sa.Integer, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
)  # fmt: skip
log = sa.Table(
    "log", metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.String(32), nullable=False, index=True),
    sa.Column("time", sa.String(32), nullable=False),
    sa.Column("level", sa.String(8), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("details", sa.Text),
)  # fmt: skip
workers = sa.Table(
    "workers", metadata,
    sa.Column("worker", sa.String(255), primary_key=True),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("threads", sa.Integer, nullable=False),
    sa.Column("running", sa.Integer, nullable=False),  # partitions at work
    sa.Column("since", sa.String(32), nullable=False),
    sa.Column("seen", sa.Float(53), nullable=False),  # seconds since 1970 of its last sign of life
)  # fmt: skip
#: State documents, one row for each serial: the highest is the present one, the others are its history.
state_documents = sa.Table(
    "state_documents", metadata,
    sa.Column("name", sa.String(128), primary_key=True),  # job:NAME, or serving
    sa.Column("serial", sa.BigInteger, primary_key=True),
    sa.Column("lineage", sa.String(64), nullable=False),
    sa.Column("body", sa.Text, nullable=False),  # JSON
    sa.Column("written", sa.String(32), nullable=False),
    sa.Column("owner", sa.String(255)),
)  # fmt: skip
#: Vectors that a model gave for a text, so that no text is paid for twice; texts a provider refuses, with `error`.
vectors = sa.Table(
    "vectors", metadata,
    sa.Column("model", sa.String(32), primary_key=True),  # ModelIdentity.key
    sa.Column("text", sa.String(32), primary_key=True),  # 32 hex digits of the sha256 of the text
    sa.Column("vector", sa.LargeBinary),  # float32, little endian; None: refused
    sa.Column("error", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("run", sa.String(32)),  # that has paid for it, or was refused
    sa.Column("written", sa.String(32), nullable=False),
)  # fmt: skip
#: What the vector of a point in a collection was made from, as far as vecrun made it.
marks = sa.Table(
    "marks", metadata,
    sa.Column("place", sa.String(255), primary_key=True),  # CONNECTION/COLLECTION
    sa.Column("vector", sa.String(255), primary_key=True),
    sa.Column("item", sa.Text, primary_key=True),  # JSON of the id
    sa.Column("model", sa.String(32), nullable=False),
    sa.Column("text", sa.String(32), nullable=False),
    sa.Column("run", sa.String(32), nullable=False),
)  # fmt: skip
#: Items that a run left out because their text could not be embedded.
failures = sa.Table(
    "failures", metadata,
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("item", sa.Text, primary_key=True),  # JSON of the id in the source
    sa.Column("text", sa.String(32)),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("time", sa.String(32), nullable=False),
)  # fmt: skip
#: The documents that a run works on, numbered, and what became of each; errors stand in `failures`.
items = sa.Table(
    "items", metadata,
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("item", sa.Text, nullable=False),  # JSON of the document's id
    sa.Column("points", sa.Text, nullable=False),  # JSON list of the ids of its points
    sa.Column("status", sa.String(16), nullable=False),  # pending, done, unchanged, failed
    sa.Column("details", sa.Text, nullable=False),  # JSON
    sa.Column("time", sa.String(32), nullable=False),
)  # fmt: skip
#: What a run has asked of a model, in the transaction that keeps the answer.
usage = sa.Table(
    "usage", metadata,
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("model", sa.String(32), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),  # that were answered
    sa.Column("texts", sa.BigInteger, nullable=False),  # embedded
    sa.Column("tokens", sa.BigInteger, nullable=False),  # as the provider counts them, else as we do
    sa.Column("known", sa.BigInteger, nullable=False),  # texts that were not asked for: their vectors are kept
    sa.Column("usd", sa.Float(53)),
)  # fmt: skip
#: When the next request to a provider may start, for all processes.
pace = sa.Table(
    "pace", metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("next", sa.Float(53), nullable=False),  # seconds since 1970
    sa.Column("held", sa.Float(53), nullable=False),  # the provider asked to wait until then
)  # fmt: skip
