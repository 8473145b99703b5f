"""What `shoal pull` and `shoal inspect` ask a registry, each question with a client of its own.

Loads an HTTP client, which a command that has little to do would notice: to be imported once there
is something to ask. Decides nothing.
"""

import os
from typing import TYPE_CHECKING, Any

from peer.cli.pull_options import Question
from peer.shell.oci.exchange import Exchange
from peer.shell.oci.manifest import CONFIG_BYTES_MAX, Manifest, json_object
from peer.shell.oci.reference import Reference
from peer.shell.oci.registry import RegistryClient

if TYPE_CHECKING:
    from peer.shell.oci.credentials import Credential


def manifest_and_right(question: Question) -> tuple[Manifest, str | None]:
    """The manifest, and the right that it was got with. Raises DownloadError, UsageError."""
    with _client(question) as client:
        manifest = client.resolve(question.reference, question.platform)
        return manifest, client.authorization(question.reference, manifest.config.digest)


def manifest_and_config(question: Question) -> tuple[Manifest, dict[str, Any]]:
    """The manifest, and the configuration if it is a small JSON object. Raises DownloadError,
    UsageError."""
    with _client(question) as client:
        manifest = client.resolve(question.reference, question.platform)
        told = manifest.config
        if not 0 < told.size_bytes <= CONFIG_BYTES_MAX or "json" not in told.media_type:
            return manifest, {}
        body = client.small_blob(question.reference, told)
        return manifest, json_object(body, "the configuration")


def fresh_right(question: Question, digest: str) -> str | None:
    """A right to read the repository's blobs that was just given. Raises DownloadError,
    UsageError."""
    with _client(question) as client:
        return client.authorization(question.reference, digest, fresh=True)


def _client(question: Question) -> RegistryClient:
    """One that finds this user's credentials."""
    options = question.options

    def find(reference: Reference) -> "Credential | None":
        # Not for a registry that lets everybody in.
        from peer.shell.oci.credentials import Credentials

        return Credentials(os.environ, options.authfile).find(reference)

    return RegistryClient(find, Exchange(options.ca_file), plain_http=options.plain_http)
