"""Who may ask, and how often: a token that all requests share, and a rate for each client."""

from __future__ import annotations

import hmac
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from shoal.core.errors import expect
from shoal.serve.requests import Refusal

_CLIENTS = 10_000  # that are remembered; beyond, whoever has been quiet for longest is forgotten
_BURST = 1.0  # seconds whose requests may come at once


def expect_token(token: str | None) -> None:
    """Check a token.

    Raises:
        InputError: if a header could not carry it, or it is empty.
    """
    good = token is None or (token.isascii() and token.isprintable() and " " not in token and token)
    want, remedy = "letters, digits and signs of ASCII, no blank", "make one: openssl rand -hex 32"
    expect(bool(good), "token", want, "another one (not shown)", remedy)


class Access:
    """Lets requests in or refuses them.

    Args:
        token: what a request must bring as ``Authorization: Bearer TOKEN``; None asks for none.
        rate: requests a second of one client; inf lets all in.
        clock: seconds.

    Example:
        >>> access = Access("secret", rate=2.0)
        >>> access.expect("192.0.2.1", "Bearer secret")
    """

    def __init__(
        self, token: str | None, rate: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        expect_token(token)
        self.token, self.rate, self._clock = token, rate, clock
        self._free: OrderedDict[str, float] = OrderedDict()  # when all of it will have been used up

    def expect(self, client: str, authorization: str) -> None:
        """Raise unless a request may be answered; those without the token count, too.

        Args:
            client: its address.
            authorization: that header, empty where there is none.

        Raises:
            Refusal: 429 where requests come too fast, 401 where the token is not the one.
        """
        self._expect_rate(client)
        if self.token is None:
            return
        scheme, _, got = authorization.partition(" ")
        # in a time that does not tell how much of it is right
        same = hmac.compare_digest(got.strip().encode(), self.token.encode())
        if scheme.lower() != "bearer" or not same:
            got = "another" if authorization else "none"
            want, remedy = "the service's token", "send the header Authorization: Bearer TOKEN"
            headers = {"www-authenticate": "Bearer"}
            raise Refusal(401, "authorization", want, got, remedy, headers)

    def _expect_rate(self, client: str) -> None:
        """Raise if a client asks faster than its rate: a leaky bucket of one number.

        Raises:
            Refusal: 429.
        """
        if self.rate == math.inf:
            return
        now, name = self._clock(), _network(client)
        free = max(self._free.pop(name, now), now)
        late = free + 1 / self.rate - now - max(_BURST, 1 / self.rate)
        # the clock's digits end somewhere: a request that is early by less is in time
        self._free[name] = free if late > 1e-6 else free + 1 / self.rate
        if len(self._free) > _CLIENTS:
            self._free.popitem(last=False)
        if late > 1e-6:
            want = f"at most {self.rate:g} requests a second of one client"
            headers = {"retry-after": str(math.ceil(late))}
            raise Refusal(429, "client", want, "more", "ask more slowly", headers)


def _network(client: str) -> str:
    """A client's address; of IPv6 the first half, since who has one address has the other half.

    Example:
        >>> _network("192.0.2.1"), _network("2001:db8::1:2") == _network("2001:db8::7")
        ('192.0.2.1', True)
    """
    try:
        address = ipaddress.ip_address(client)
    except ValueError:  # no address, such as that of a local socket
        return client
    if address.version == 4:
        return client
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)).network_address)
