"""Records in SQLite: a file that several processes of one machine share, or the memory of this process.

A commit is synced before a put returns, and a transaction cut off by a crash is undone by whoever opens the file next.
The rollback journal, not the write-ahead log: that would need memory shared by all who use the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event as Signal
from threading import Lock, Thread
from typing import Final

from x2l_cluster.errors import RecordCorrupt, StoreFull, StoreUnavailable
from x2l_cluster.kv.files import errors_as_store, sync_folders
from x2l_cluster.state.ledger import Entry, Event, Group, GroupFull, Room
from x2l_cluster.state.watchers import Watchers

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS records (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks (
    ix TEXT NOT NULL, grp TEXT NOT NULL, place REAL NOT NULL, name TEXT NOT NULL, PRIMARY KEY (ix, grp, place, name)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS marks_of ON marks (name);
CREATE TABLE IF NOT EXISTS log (
    name TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (name, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_BUSY_S: Final = 30.0
"""How long a writer waits for others before it gives up."""
_LOOK_S: Final = (0.01, 0.25)
"""How often another process's changes are looked for: soon after a change, and when nothing happens."""


class SqliteLedger:
    """Records in a file (its folder is made when missing), or without one in memory."""

    def __init__(self, path: Path | None = None) -> None:
        self.durable = path is not None
        self._where = str(path or "memory")
        self._path = path
        self._lock = Lock()
        self._watchers = Watchers()
        self._closed = Signal()
        self._looker: Thread | None = None
        if path is not None:
            with errors_as_store(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                sync_folders(path.parent, path.parent.parent)
        with self._errors():
            self._db = self._connect()

    def count(self, counter: str) -> int:
        with self._writing() as db:
            db.execute(
                "INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1", (counter,)
            )
            return int(db.execute("SELECT value FROM counters WHERE name = ?", (counter,)).fetchone()[0])

    def get(self, name: str) -> bytes | None:
        with self._reading() as db:
            return _get(db, name)

    def get_many(self, names: Sequence[str]) -> list[bytes | None]:
        with self._reading() as db:
            return [_get(db, name) for name in names]

    def put(
        self,
        name: str,
        expected: bytes | None,
        entry: Entry | None,
        *,
        event: Event | None = None,
        room: Room | None = None,
        topics: Sequence[str] = (),
    ) -> bool:
        with self._writing() as db:
            current = _get(db, name)
            if current == (entry.data if entry else None):
                return True
            if current != expected:
                return False
            db.execute("DELETE FROM marks WHERE name = ?", (name,))
            if entry is None:
                db.execute("DELETE FROM records WHERE name = ?", (name,))
                db.execute("DELETE FROM log WHERE name = ?", (name,))
            else:
                db.execute("INSERT OR REPLACE INTO records VALUES (?, ?)", (name, entry.data))
                marks = [(index, group, place, name) for (index, group), place in entry.marks.items()]
                db.executemany("INSERT INTO marks VALUES (?, ?, ?, ?)", marks)
            if event is not None:
                db.execute("INSERT INTO log VALUES (?, ?, ?)", (name, event.number, event.data))
                db.execute("DELETE FROM log WHERE name = ? AND number <= ?", (name, event.number - event.keep))
            if room is not None:
                held = db.execute("SELECT COUNT(*) FROM marks WHERE ix = ? AND grp = ?", room.where).fetchone()[0]
                if held > room.most:
                    raise GroupFull
        self._watchers.tell(*topics)
        return True

    def groups(self, *indexes: str) -> list[dict[str, Group]]:
        query = "SELECT grp, COUNT(*), MIN(place), MAX(place) FROM marks WHERE ix = ? GROUP BY grp"
        with self._reading() as db:
            return [{group: Group(*rest) for group, *rest in db.execute(query, (index,))} for index in indexes]

    def names(
        self, index: str, group: str, *, limit: int, upto: float | None = None, newest: bool = False
    ) -> list[str]:
        order = "DESC" if newest else "ASC"
        query = (
            "SELECT name FROM marks WHERE ix = ? AND grp = ? AND place <= ? "
            f"ORDER BY place {order}, name {order} LIMIT ?"
        )
        with self._reading() as db:
            place = float("inf") if upto is None else upto
            return [name for (name,) in db.execute(query, (index, group, place, limit))]

    def log(self, name: str, after: int) -> list[bytes]:
        query = "SELECT data FROM log WHERE name = ? AND number > ? ORDER BY number"
        with self._reading() as db:
            return [data for (data,) in db.execute(query, (name, after))]

    @contextmanager
    def watching(self, topic: str, notify: Callable[[], None]) -> Iterator[None]:
        with self._watchers.watching(topic, notify):
            if self._path is not None:
                with self._lock:
                    if self._looker is None and not self._closed.is_set():
                        self._looker = Thread(target=self._look, name="x2l-ledger", daemon=True)
                        self._looker.start()
            yield

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            self._db.close()
        if self._looker is not None:
            self._looker.join()
        self._watchers.tell_all()

    # --- machinery --------------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        place = ":memory:" if self._path is None else str(self._path)
        db = sqlite3.connect(place, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = TRUNCATE")
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(_TABLES)
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._errors(), self._lock:
            yield self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._errors(), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise StoreFull(f"no room left at {self._where}: delete videos or give it more space") from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise RecordCorrupt(f"{self._where} is damaged ({error}): restore it, or move it away") from error
            raise StoreUnavailable(f"{self._where} cannot be used: {error}") from error

    def _look(self) -> None:
        """Tells of what other processes change, as long as anybody watches."""
        version, pause = -1, _LOOK_S[0]
        db: sqlite3.Connection | None = None
        while not self._closed.wait(pause):
            pause = min(pause * 1.5, _LOOK_S[1])
            if not self._watchers:
                continue
            try:
                db = db or self._connect()
                seen = int(db.execute("PRAGMA data_version").fetchone()[0])
            except sqlite3.Error:  # those who watch look now and then, and will meet it themselves
                seen = version
            if seen != version:
                version, pause = seen, _LOOK_S[0]
                self._watchers.tell_all()
        if db is not None:
            db.close()


def _get(db: sqlite3.Connection, name: str) -> bytes | None:
    found = db.execute("SELECT data FROM records WHERE name = ?", (name,)).fetchone()
    return None if found is None else bytes(found[0])
