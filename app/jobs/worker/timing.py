"""Intervals and time limits of the worker's threads, in seconds. Each is read when it is needed, so that a test can shorten it."""

from __future__ import annotations

HEARTBEAT_SECONDS: float = 2.0
#: How often an idle runner looks for a job although nothing woke it.
CLAIM_POLL_SECONDS: float = 1.0
#: Pause before something that failed is tried again: a write to the database, an election.
RETRY_SECONDS: float = 0.5
#: How often a WebUI is asked for its catalogue.
REFRESH_SECONDS: float = 60.0
#: The same while no default model is known, as with a WebUI whose first model is still loading.
FRESH_SECONDS: float = 2.0
#: The least time between two requests for the catalogue that somebody wanted at once.
REFRESH_AGAIN_SECONDS: float = 5.0
#: How often a WebUI is polled for the progress of a job. Polling costs generation time, so it is rare while no client watches.
POLL_SECONDS: float = 1.0
UNWATCHED_POLL_SECONDS: float = 10.0
#: A client that asked for a job within so many seconds watches it.
WATCHED_FOR_SECONDS: float = 5.0
#: A WebUI that reports to be idle for so long while it owes us an answer will never send it.
STUCK_SECONDS: float = 60.0
#: How often a suspect WebUI is tried again.
SUSPECT_SECONDS: float = 10.0
UPKEEP_SECONDS: float = 2.0
#: How long an interrupted generation gets to answer when the worker stops.
INTERRUPT_SECONDS: float = 3.0
#: How long a thread that is told to end gets for the query or request that it is in.
END_SECONDS: float = 3.0
