"""What the proxy does with each HTTP request, in the clear or from within opened TLS.

Decides by the policy which of three parts answers: the mirror, for what is read of registries; the
swarm, for what rules name; or the origin itself. Asks nobody anything.
"""

from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import web

from peer.shell.proxy.headers import passed
from peer.shell.proxy.passing import Passing, UnreachableError
from peer.shell.proxy.policy import Plan, Policy, RefusedError
from peer.shell.proxy.rules import wishes_of
from peer.shell.proxy.swarm import SwarmReads
from peer.shell.proxy.targets import Target, TargetError, parse_absolute, parse_target


class AnswerOfMirror(Protocol):
    """The registry mirror, as the proxy asks it."""

    async def __call__(
        self, request: web.Request, registry: str, *, fixed: bool
    ) -> web.StreamResponse:
        """Answers a request. `registry`: what it is for, "" if the request names it; `fixed`:
        it may name no other."""
        ...


_SAID_BY: Final = {"X-Shoal-Error": "proxy"}
"""Tells what the proxy says from what an origin says."""


@dataclass(slots=True)
class ProxyCounters:
    """What the proxy counts, for metrics."""

    requests: int = 0
    registry_requests: int = 0
    passed: int = 0
    refused: int = 0
    """Requests and tunnels for what is not listed, or that cannot be read."""
    unreachable: int = 0
    tunnels: int = 0
    tunnel_bytes: int = 0
    intercepted: int = 0
    intercept_failed: int = 0
    """Clients that broke the handshake off: most likely they do not trust the CA."""
    overloaded: int = 0
    left_by_client: int = 0
    """Requests whose client went before their end."""


def say(status: int, text: str) -> web.Response:
    """An answer of the proxy itself."""
    return web.Response(status=status, text=f"shoal proxy: {text}\n", headers=_SAID_BY)


class ProxyRoutes:
    """Answers requests. `mirror` answers what is read of registries; None without any."""

    def __init__(
        self,
        *,
        policy: Policy,
        passing: Passing,
        swarm: SwarmReads,
        mirror: AnswerOfMirror | None,
        pseudonym: str,
        counters: ProxyCounters,
    ) -> None:
        self._policy = policy
        self._passing = passing
        self._swarm = swarm
        self._mirror = mirror
        self._pseudonym = pseudonym
        self._counters = counters

    async def answer(self, http: web.Request, opened: Target | None) -> web.StreamResponse:
        """Any request but a proper CONNECT. `opened`: where TLS that was opened was for; None for
        a request in the clear."""
        counters = self._counters
        counters.requests += 1
        if http.method == "CONNECT":
            # What follows is no HTTP any longer, and the connection is of no use.
            counters.refused += 1
            refusal = say(400, "CONNECT is for a connection of its own")
            refusal.force_close()
            return refusal
        if passed(", ".join(http.headers.getall("Via", [])), self._pseudonym):
            return say(508, "this request has been here before: a loop")
        try:
            if opened is None and http.raw_path.startswith("/"):
                return await self._as_mirror(http)
            target, rest = self._target(http, opened)
            wishes = wishes_of(http.headers)
            plan = self._policy.plan(http.method, target, http.path, rest, wishes, http.headers)
            self._policy.check(plan.target)
            if plan.way == "registry" and self._mirror is not None:
                counters.registry_requests += 1
                return await self._mirror(http, plan.registry, fixed=True)
            if plan.way == "swarm" and not http.body_exists:
                places = self._policy.places_of(plan.target)
                sent = await self._swarm.answer(http, plan.target, rest, places, wishes)
                if sent is not None:
                    return sent
            return await self._pass_on(http, plan, rest)
        except TargetError as error:
            counters.refused += 1
            return say(400, str(error))
        except RefusedError as error:
            counters.refused += 1
            return say(403, str(error))
        except UnreachableError as error:
            counters.unreachable += 1
            return say(502, str(error))

    async def _pass_on(self, http: web.Request, plan: Plan, rest: str) -> web.StreamResponse:
        self._counters.passed += 1
        return await self._passing.pass_on(http, plan.target, rest)

    async def _as_mirror(self, http: web.Request) -> web.StreamResponse:
        """A request that is not made as to a proxy: clients of Dragonfly's use one port for both,
        and name the registry in a header."""
        if self._mirror is not None and (http.path == "/v2" or http.path.startswith("/v2/")):
            self._counters.registry_requests += 1
            return await self._mirror(http, "", fixed=False)
        raise TargetError(
            "this is a proxy: set it as HTTP_PROXY and HTTPS_PROXY, do not ask it for pages"
        )

    @staticmethod
    def _target(http: web.Request, opened: Target | None) -> tuple[Target, str]:
        if opened is None:
            return parse_absolute(http.raw_path)
        if not http.raw_path.startswith("/"):
            raise TargetError("a request within TLS names a path and no more")
        if parse_target(http.headers.get("Host", ""), "https") != opened:
            raise TargetError("the request's Host is not the one that the connection was made for")
        return opened, http.raw_path.partition("#")[0]
