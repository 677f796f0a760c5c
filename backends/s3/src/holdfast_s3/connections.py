"""The HTTP connections underneath the client, without repetition that nobody sees.

aiohttp sends an idempotent request again when a kept connection breaks. For a conditional
put that turns a lost reply into a refusal without a trace of doubt; this backend repeats by
itself and knows when it is in doubt.
"""

from __future__ import annotations

from typing import Any

from aiobotocore.httpsession import AIOHTTPSession


class SingleTrySession(AIOHTTPSession):  # type: ignore[misc]
    """Sends each request once."""

    async def _get_session(self, proxy_url: Any) -> Any:
        session = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session
