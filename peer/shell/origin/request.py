"""What is asked of an origin: a URL and the user's headers, with everything secret in them.

An `OriginRequest` stays in the shell of the host whose user gave it. It decides nothing, and its
`repr` and `str` show neither the query, nor user info, nor any header's value, so that a log line
or an error can never give a credential away.
"""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from peer.shell.origin.places import PlaceRules


@dataclass(frozen=True, slots=True, repr=False)
class OriginRequest:
    """One thing to ask an origin for. Made by `peer.shell.wanted_urls.origin_request`, which checks
    it.

    `headers` are the user's own, in order; all of them count as credentials when a redirect leads
    to another host. `ca_file` names PEM certificates trusted beside the system's own, `authorities`
    has such certificates as text. `places` bounds where it may lead, redirects too, for a user who
    is not trusted with every address.
    """

    url: str
    headers: tuple[tuple[str, str], ...] = ()
    insecure_skip_verify: bool = False
    ca_file: Path | None = None
    authorities: str = ""
    places: PlaceRules | None = None

    def __repr__(self) -> str:
        """URL without secrets and the names of the headers."""
        names = ", ".join(name for name, _ in self.headers)
        return f"OriginRequest({self.display}, headers=[{names}])"

    def __str__(self) -> str:
        """The same as `repr`: an f-string is the likeliest way into a log."""
        return repr(self)

    @property
    def scheme(self) -> str:
        """The URL's scheme in lower case."""
        return self.url.partition(":")[0].lower()

    @property
    def display(self) -> str:
        """The URL without user info, query and fragment: for people."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
