"""One simulated host: what passes between it, its parents and children, and the origin.

Carries out effects as the shell does, after the time that they would take; never decides.
"""

from collections.abc import Callable

from benchmarks.sim.base import ACTIVE_NS, STORE_NS, Fetching, NodeBase
from peer.core import effects as fx
from peer.core import events as ev
from shoal.wire.digest import swarm_proof
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, RequestId
from shoal.wire.limits import SECOND_NS


class SimNode(NodeBase):
    """A host of the world, complete."""

    # ------------------------------------------------------------ child side

    def _do_Connect(self, effect: fx.Connect) -> None:
        parent = self.world.nodes.get(effect.host_id)
        delay_ns = 2 * self.world.options.latency_ns
        if parent is None or not parent.alive:
            self.later(
                delay_ns,
                ev.ParentConnectFailed,
                host_id=effect.host_id,
                reason=Reason.PEER_LOST,
                detail="refused",
            )
            return
        connection_id = ConnectionId(self.world.random.getrandbits(62))
        self.parents[connection_id] = parent
        parent.children[connection_id] = self
        self.later(
            delay_ns,
            ev.ParentConnected,
            host_id=effect.host_id,
            connection_id=connection_id,
            round_trip_ns=delay_ns,
        )

    def _do_Disconnect(self, effect: fx.Disconnect) -> None:
        parent = self.parents.pop(effect.connection_id, None)
        if parent is not None:
            parent.child_gone(effect.connection_id)
            self._end_connection(effect.connection_id, Reason.CANCELLED)

    def parent_gone(self, connection_id: ConnectionId) -> None:
        """A parent's process died."""
        if self.parents.pop(connection_id, None) is not None:
            self._end_connection(connection_id, Reason.PEER_LOST)

    def _end_connection(self, connection_id: ConnectionId, reason: Reason) -> None:
        for request_id, fetching in list(self.fetching.items()):
            if fetching.effect.connection_id == connection_id:
                del self.fetching[request_id]
                self.later(0, ev.FetchEnded, request_id=request_id, reason=Reason.PEER_LOST)
        self.later(0, ev.ParentClosed, connection_id=connection_id, reason=reason, detail="closed")

    def child_gone(self, connection_id: ConnectionId) -> None:
        """A child closed its connection, or died."""
        if self.children.pop(connection_id, None) is not None:
            self.later(0, ev.ChildGone, connection_id=connection_id)

    def _do_OpenChannel(self, effect: fx.OpenChannel) -> None:
        parent = self.parents.get(effect.connection_id)
        if parent is None:
            return
        nonce = b"n" * 16
        parent.later(
            self.world.options.latency_ns,
            ev.ChildOpened,
            connection_id=effect.connection_id,
            host_id=self.host_id,
            task_id=effect.task_id,
            nonce=nonce,
            proof=swarm_proof(effect.token, nonce, self.host_id, effect.task_id),
        )

    def _do_CloseChannel(self, effect: fx.CloseChannel) -> None:
        parent = self.parents.get(effect.connection_id)
        if parent is not None:
            parent.later(
                self.world.options.latency_ns,
                ev.ChildClosedTask,
                connection_id=effect.connection_id,
                task_id=effect.task_id,
            )

    def _do_FetchPiece(self, effect: fx.FetchPiece) -> None:
        parent = self.parents.get(effect.connection_id)
        if parent is None:
            self.later(0, ev.FetchEnded, request_id=effect.request_id, reason=Reason.PEER_LOST)
            return
        self.fetching[effect.request_id] = Fetching(effect, parent)
        parent.later(
            self.world.options.latency_ns,
            ev.ChildRequested,
            connection_id=effect.connection_id,
            task_id=effect.task_id,
            requests=((effect.request_id, effect.piece),),
        )

    def _do_CancelFetch(self, effect: fx.CancelFetch) -> None:
        fetching = self.fetching.pop(effect.request_id, None)
        if fetching is None:
            return
        self.later(0, ev.FetchEnded, request_id=effect.request_id, reason=Reason.CANCELLED)
        fetching.parent.later(
            self.world.options.latency_ns,
            ev.ChildCancelled,
            connection_id=fetching.effect.connection_id,
            requests=(effect.request_id,),
        )

    def receive(
        self,
        connection_id: ConnectionId,
        request_id: RequestId,
        reason: Reason | None,
        **fields: object,
    ) -> None:
        """A parent answered a request, unless the connection broke meanwhile."""
        fetching = self.fetching.get(request_id)
        if fetching is None or fetching.effect.connection_id != connection_id:
            return
        del self.fetching[request_id]
        effect = fetching.effect
        if reason is None:
            record = fields["record"]
            assert isinstance(record, ev.PieceRecord)
            if fields["corrupt"]:
                reason = Reason.PEER_CORRUPT
            elif fields["epoch"] != effect.epoch and (fields["epoch"] or not effect.provisional):
                reason = Reason.NOT_HELD
            elif effect.expected and effect.expected != record.digest:
                reason = Reason.PEER_CONTRADICTED
            else:
                kept = ev.PieceRecord(record.digest, record.lease_number, read_here=False)
                self._keep(effect.task_id, effect.piece, kept)
                self.later(
                    STORE_NS,
                    ev.FetchEnded,
                    request_id=request_id,
                    reason=None,
                    digest=record.digest,
                    lease_number=record.lease_number,
                    epoch=fields["epoch"],
                )
                return
        retry_after_ms = fields.get("retry_after_ms", 0)
        self.later(
            0, ev.FetchEnded, request_id=request_id, reason=reason, retry_after_ms=retry_after_ms
        )

    # ------------------------------------------------------------ parent side

    def _child(self, connection_id: ConnectionId) -> "SimNode | None":
        return self.children.get(connection_id)

    def _tell_child(
        self, connection_id: ConnectionId, event_type: type[ev.Event], **fields: object
    ) -> None:
        child = self._child(connection_id)
        if child is not None:
            child.later(
                self.world.options.latency_ns, event_type, connection_id=connection_id, **fields
            )

    def _do_AcceptChild(self, effect: fx.AcceptChild) -> None:
        self._tell_child(
            effect.connection_id,
            ev.ParentOpened,
            task_id=effect.task_id,
            epoch=effect.epoch,
            held=effect.held,
        )

    def _do_RefuseChild(self, effect: fx.RefuseChild) -> None:
        self._tell_child(
            effect.connection_id, ev.ParentRefused, task_id=effect.task_id, reason=effect.reason
        )

    def _do_Announce(self, effect: fx.Announce) -> None:
        for connection_id in effect.connection_ids:
            self._tell_child(connection_id, ev.ParentHave, task_id=effect.task_id, new=effect.new)

    def _do_Withdraw(self, effect: fx.Withdraw) -> None:
        for connection_id in effect.connection_ids:
            self._tell_child(
                connection_id, ev.ParentWithdrew, task_id=effect.task_id, gone=effect.gone
            )

    def _do_ServePiece(self, effect: fx.ServePiece) -> None:
        world = self.world
        child = self._child(effect.connection_id)
        if child is None:
            self._served(effect, 0, Reason.PEER_LOST)
            return
        if self.lie == "stall":
            return
        up_ns = effect.length_bytes * SECOND_NS // self.rate_bytes_s
        self.up_free_ns = max(self.up_free_ns, world.now_ns) + up_ns
        sent_ns = self.up_free_ns
        record, corrupt = effect.record, False
        if self.lie == "bytes":
            corrupt = True
        elif self.lie == "header":
            record = ev.PieceRecord(b"L" * 16, record.lease_number, read_here=False)
        self._served(effect, sent_ns - world.now_ns, None)
        for step in range(1, (sent_ns - world.now_ns) // ACTIVE_NS + 1):
            if sent_ns - step * ACTIVE_NS >= sent_ns - up_ns:
                child.later(
                    sent_ns - step * ACTIVE_NS - world.now_ns,
                    ev.ParentActive,
                    connection_id=effect.connection_id,
                )

        def arrive() -> None:
            child.receive(
                effect.connection_id,
                RequestId(effect.child_request),
                None,
                record=record,
                corrupt=corrupt,
                epoch=effect.epoch,
            )

        world.after(
            sent_ns + world.options.latency_ns - world.now_ns,
            lambda: child.take_in(effect.length_bytes, arrive),
        )

    def take_in(self, length_bytes: int, then: Callable[[], None]) -> None:
        """Bytes that were just sent pass this host's downlink, behind what is passing already."""
        down_ns = length_bytes * SECOND_NS // self.rate_bytes_s
        # Cut through: they came in while they were sent, if the link was free.
        self.down_free_ns = max(self.down_free_ns + down_ns, self.world.now_ns)
        self.world.after(self.down_free_ns - self.world.now_ns, then)

    def _served(self, effect: fx.ServePiece, delay_ns: int, reason: Reason | None) -> None:
        self.later(
            delay_ns,
            ev.ServeEnded,
            connection_id=effect.connection_id,
            child_request=effect.child_request,
            task_id=effect.task_id,
            piece=effect.piece,
            reason=reason,
        )

    def _answer(
        self, connection_id: ConnectionId, request: int, reason: Reason, retry_after_ms: int = 0
    ) -> None:
        child = self._child(connection_id)
        if child is not None:
            self.world.after(
                self.world.options.latency_ns,
                lambda: child.receive(
                    connection_id, RequestId(request), reason, retry_after_ms=retry_after_ms
                ),
            )

    def _do_SendBusy(self, effect: fx.SendBusy) -> None:
        self._answer(
            effect.connection_id, effect.child_request, Reason.PEER_BUSY, effect.retry_after_ms
        )

    def _do_SendReject(self, effect: fx.SendReject) -> None:
        self._answer(effect.connection_id, effect.child_request, effect.reason)

    def _do_DropChild(self, effect: fx.DropChild) -> None:
        child = self.children.pop(effect.connection_id, None)
        if child is not None:
            child.parent_gone(effect.connection_id)
            self.later(0, ev.ChildGone, connection_id=effect.connection_id)

    # ------------------------------------------------------------ origin

    def _do_StatOrigin(self, effect: fx.StatOrigin) -> None:
        origin = self.world.origin
        origin.stats += 1
        delay_ns = 2 * self.world.options.latency_ns
        if not origin.up:
            self.later(
                delay_ns,
                ev.StatEnded,
                request_id=effect.request_id,
                reason=Reason.ORIGIN_FAILED,
                detail="refused",
            )
            return
        self.later(
            delay_ns,
            ev.StatEnded,
            request_id=effect.request_id,
            reason=None,
            size_bytes=origin.size_bytes if origin.known_size else None,
            validator=origin.validator,
            ranges=origin.ranges,
        )

    def _do_ReadOrigin(self, effect: fx.ReadOrigin) -> None:
        run = self.runs
        origin = self.world.origin
        geometry = effect.descriptor.geometry
        sealed = geometry.sealed(origin.size_bytes)
        count = effect.piece_count
        end = sealed.piece_count if count is None else effect.first_piece + count

        def next_piece(piece: int) -> None:
            if not self.alive or self.runs != run:
                return
            reason = None
            if effect.request_id in self.stopped_reads:
                reason = Reason.CANCELLED
            elif not origin.up:
                reason = Reason.ORIGIN_FAILED
            elif effect.descriptor.validator not in (None, origin.validator):
                reason = Reason.ORIGIN_CHANGED
            if reason is not None or piece >= end:
                size = origin.size_bytes if count is None and reason is None else None
                self.post(
                    ev.OriginReadEnded(
                        now_ns=self.world.now_ns,
                        request_id=effect.request_id,
                        reason=reason,
                        size_bytes=size,
                    )
                )
                return
            length = sealed.length_bytes(piece)
            took_ns = length * SECOND_NS // origin.rate_bytes_s
            origin.free_at_ns = max(origin.free_at_ns, self.world.now_ns) + took_ns
            self.world.after(
                origin.free_at_ns - self.world.now_ns,
                lambda: self.take_in(
                    length, lambda: self._piece_read(effect, piece, length, run, next_piece)
                ),
            )

        self.world.after(2 * self.world.options.latency_ns, lambda: next_piece(effect.first_piece))

    def _piece_read(
        self, effect: fx.ReadOrigin, piece: int, length: int, run: int, then: Callable[[int], None]
    ) -> None:
        if not self.alive or self.runs != run:
            return
        origin = self.world.origin
        origin.reads[piece] = origin.reads.get(piece, 0) + 1
        self.origin_bytes += length
        digest = origin.digest(piece)
        if self.lie == "origin":
            digest = b"L" * 16
        task_id = effect.descriptor.task_id
        self._keep(task_id, piece, ev.PieceRecord(digest, effect.lease_number, read_here=True))
        self.post(
            ev.OriginPieceStored(
                now_ns=self.world.now_ns,
                request_id=effect.request_id,
                piece=piece,
                digest=digest,
                length_bytes=length,
            )
        )
        then(piece + 1)

    def _do_CancelOrigin(self, effect: fx.CancelOrigin) -> None:
        self.stopped_reads[effect.request_id] = None

    # ------------------------------------------------------------ clients

    def _do_DownloadEnded(self, effect: fx.DownloadEnded) -> None:
        self.ended = True
        self.reason = effect.reason
        self.ended_ns = self.world.now_ns

    def _do_Noted(self, effect: fx.Noted) -> None:
        if effect.kind == "blamed" and effect.host_id is not None:
            self.world.blamed.append((self.host_id, effect.host_id))

    def _ignore(self, effect: object) -> None:
        """Of no consequence in the simulation."""

    _do_SourceResolved = _do_PrefixReadable = _do_SourceEnded = _do_RemoveEnded = _ignore
