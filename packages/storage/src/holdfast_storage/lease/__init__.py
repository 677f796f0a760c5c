"""The lease of a run: at most one writing process, and one that lost it decides nothing more.

`_lease/<epoch>` are objects that are only ever created, and the highest is the holder. That
needs nothing but create-only puts. The holder refreshes its object; whoever wants to write
sees that it is released, that its process is gone, or that it has not moved for a while by
the observer's own monotonic clock, and creates the next one. See `acquire` and `guard`.
"""

from holdfast_storage.lease.acquiring import acquire
from holdfast_storage.lease.fencing import settle_leaving
from holdfast_storage.lease.holding import HeldLease
from holdfast_storage.lease.others import other_writer, refuse_if_written
from holdfast_storage.lease.process import ProcessLeases
from holdfast_storage.lease.watching import Patience, find_holder

__all__ = [
    "HeldLease",
    "Patience",
    "ProcessLeases",
    "acquire",
    "find_holder",
    "other_writer",
    "refuse_if_written",
    "settle_leaving",
]
