"""One simulated host, complete: how it lets go of others, what its clients see, and which part of
it carries out which effect."""

from typing import Any

from benchmarks.sim.child import ChildSide
from benchmarks.sim.parent import ParentSide
from benchmarks.sim.reading import OriginSide
from peer.core import effects as fx


class SimNode(ChildSide, ParentSide, OriginSide):
    """A host of the world."""

    def _let_go(self) -> None:
        for read in self.reads.values():
            read.abort()
        for connection in self.parents.values():
            self.close_from_child(connection)
        for connection in self.children.values():
            self.close_from_parent(connection)
        self.reads.clear()
        self.parents.clear()
        self.children.clear()
        self.fetching.clear()

    def _download_ended(self, effect: fx.DownloadEnded) -> None:
        self.ended = True
        self.reason = effect.reason
        self.ended_ns = self.world.now_ns
        if effect.reason is None and not all(c.sealed for c in self.contents.values()):
            self.world.broken.append(f"{self.host_id}: has success without a sealed content")

    def _noted(self, effect: fx.Noted) -> None:
        if effect.kind == "blamed" and effect.host_id is not None:
            self.world.blamed.append((self.host_id, effect.host_id))

    def _ignore(self, effect: Any) -> None:
        """Of no consequence in the simulation."""


SimNode.DO = {
    fx.OpenTask: SimNode._open_task,
    fx.DropPieces: SimNode._drop_pieces,
    fx.HashPrefix: SimNode._hash_prefix,
    fx.SealTask: SimNode._seal_task,
    fx.RemoveTask: SimNode._remove_task,
    fx.SendToScheduler: SimNode._send_to_scheduler,
    fx.Connect: SimNode._connect,
    fx.Disconnect: SimNode._disconnect,
    fx.OpenChannel: SimNode._open_channel,
    fx.CloseChannel: SimNode._close_channel,
    fx.CancelFetch: SimNode._cancel_fetch,
    fx.AcceptChild: SimNode._accept_child,
    fx.RefuseChild: SimNode._refuse_child,
    fx.Announce: SimNode._announce,
    fx.Withdraw: SimNode._withdraw,
    fx.ServePiece: SimNode._serve_piece,
    fx.SendBusy: SimNode._send_busy,
    fx.SendReject: SimNode._send_reject,
    fx.DropChild: SimNode._drop_child,
    fx.StatOrigin: SimNode._stat_origin,
    fx.ReadOrigin: SimNode._read_origin,
    fx.CancelOrigin: SimNode._cancel_origin,
    fx.DownloadEnded: SimNode._download_ended,
    fx.Noted: SimNode._noted,
    fx.SourceResolved: SimNode._ignore,
    fx.PiecesReadable: SimNode._ignore,
    fx.PiecesRevoked: SimNode._ignore,
    fx.SourceEnded: SimNode._ignore,
    fx.RemoveEnded: SimNode._ignore,
    fx.HoldersCounted: SimNode._ignore,
}
