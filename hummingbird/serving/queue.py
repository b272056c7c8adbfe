"""Whose turn it is: start-time fair queueing over clients, by cost rather than by number."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["FairQueue"]


@dataclass(frozen=True)
class _Entry:
    job_id: str
    client: str
    cost: float
    key: Hashable


class FairQueue:
    """Jobs of many clients: who has had least gets the next turn, and a newcomer starts level with all.

    Each client's jobs keep their order. A job is tagged with the virtual time at which its client's turn has
    come: the end of the client's last job, or now where that is past. The smallest tag is next. Where all
    jobs cost the same this is round robin; where they do not, a client of long videos gets fewer of them.

    Reference: Goyal, Vin, Cheng: Start-time Fair Queueing, SIGCOMM 1996, section 2 (equations 4 to 6).
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[_Entry]] = {}
        self._finish: dict[str, float] = {}  # tag at which a client's last job ends
        self._now = 0.0  # tag of the job that was taken last

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def count(self, client: str) -> int:
        """How many jobs of this client wait."""
        return len(self._waiting.get(client, ()))

    @property
    def num_clients(self) -> int:
        """How many clients have jobs that wait."""
        return len(self._waiting)

    def push(self, job_id: str, client: str, cost: float, key: Hashable = None) -> None:
        """Put a job at the end of its client's row.

        Args:
            job_id: what ``pop`` gives back.
            client: whose it is.
            cost: in any unit, above 0.
            key: for ``pop(key)``.
        """
        self._waiting.setdefault(client, deque()).append(_Entry(job_id, client, cost, key))

    def peek(self, key: Hashable = None) -> str | None:
        """The next job; None where none waits.

        Args:
            key: only a job with this key, that is first in its client's row.
        """
        entry = self._next(key)
        return None if entry is None else entry.job_id

    def pop(self, key: Hashable = None) -> str | None:
        """Take the job that ``peek`` shows; None where there is none."""
        entry = self._next(key)
        if entry is None:
            return None
        self._now = max(self._now, self._start(entry))
        self._finish[entry.client] = self._start(entry) + entry.cost
        row = self._waiting.pop(entry.client)
        row.popleft()
        if row:
            self._waiting[entry.client] = row  # behind the others, among equals
        if not self._waiting:  # the end of a busy period: nobody owes anybody
            self._now = max(self._now, *self._finish.values())
        if not row:  # whoever has nothing waiting and owes nothing is as good as new
            self._finish = {
                client: finish
                for client, finish in self._finish.items()
                if client in self._waiting or finish > self._now
            }
        return entry.job_id

    def _next(self, key: Hashable) -> _Entry | None:
        heads = [row[0] for row in self._waiting.values() if key is None or row[0].key == key]
        return min(heads, key=self._start, default=None)  # of equals the client that came first

    def _start(self, entry: _Entry) -> float:
        return max(self._now, self._finish.get(entry.client, 0.0))

    def remove(self, job_id: str) -> bool:
        """Take a job out of the row; False where it does not wait."""
        for client, row in self._waiting.items():
            for entry in row:
                if entry.job_id == job_id:
                    row.remove(entry)
                    if not row:
                        del self._waiting[client]
                    return True
        return False

    def positions(self) -> dict[str, int]:
        """For every job how many come before it if no further ones are sent."""
        copy = FairQueue()
        copy._waiting = {client: deque(row) for client, row in self._waiting.items()}
        copy._finish, copy._now = dict(self._finish), self._now
        places: dict[str, int] = {}
        while (job_id := copy.pop()) is not None:
            places[job_id] = len(places)
        return places
