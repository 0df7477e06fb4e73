//! Which redelivered publishes are recognised: none, so that nothing is ever dropped by mistake.

/// Remembers nothing.
#[derive(Debug, Default)]
pub(super) struct Window;

impl Window {
    pub(super) fn store(&mut self, _session: u64, _packet_id: u16, _hash: u64) {}

    pub(super) fn is_redelivery(&self, _session: u64, _packet_id: u16, _hash: u64) -> bool {
        false
    }

    pub(super) fn encode(&self, _out: &mut Vec<u8>) {}

    pub(super) fn decode(_bytes: &[u8]) -> Option<Self> {
        Some(Self)
    }
}
