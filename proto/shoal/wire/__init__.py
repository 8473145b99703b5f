"""The pure ground: ids, digests, geometry, bitfields, frames, control messages, limits, errors."""
