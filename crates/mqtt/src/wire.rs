//! The primitive fields of MQTT (section 1.5 of the MQTT 5 specification), read from a borrowed slice.

use crate::error::DecodeError;
use crate::packet::PacketId;
use crate::topic;

type Read<T> = Result<T, DecodeError>;

/// What is left of a packet or of a property block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn end(&self) -> Read<()> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes) }
    }

    #[inline]
    pub(crate) fn take(&mut self, bytes: usize) -> Read<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(bytes).ok_or(DecodeError::CutShort)?;
        self.0 = tail;
        Ok(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(DecodeError::CutShort)?;
        self.0 = tail;
        Ok(*head)
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Read<u8> {
        Ok(self.array::<1>()?[0])
    }

    #[inline]
    pub(crate) fn two(&mut self) -> Read<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn four(&mut self) -> Read<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// A variable byte integer inside a packet: such stand only in MQTT 5 packets, where the shortest form is a must.
    #[inline]
    pub(crate) fn variable(&mut self) -> Read<u32> {
        match variable(self.0, true)? {
            None => Err(DecodeError::CutShort),
            Some((value, used)) => {
                self.0 = &self.0[used..];
                Ok(value)
            }
        }
    }

    #[inline]
    pub(crate) fn binary(&mut self) -> Read<&'a [u8]> {
        let bytes = self.two()?;
        self.take(usize::from(bytes))
    }

    #[inline]
    pub(crate) fn string(&mut self) -> Read<&'a str> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| DecodeError::NotUtf8)?;
        if text.as_bytes().contains(&0) { Err(DecodeError::NulCharacter) } else { Ok(text) }
    }

    /// A topic name; it may be empty here, which only a topic alias excuses.
    #[inline]
    pub(crate) fn topic_name(&mut self) -> Read<&'a str> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| DecodeError::NotUtf8)?;
        for byte in text.bytes() {
            match byte {
                b'+' | b'#' => return Err(DecodeError::TopicName),
                0 => return Err(DecodeError::NulCharacter),
                _ => {}
            }
        }
        Ok(text)
    }

    pub(crate) fn topic_filter(&mut self) -> Read<&'a str> {
        let text = self.string()?;
        topic::check_filter(text).map_err(|_| DecodeError::TopicFilter)?;
        Ok(text)
    }

    #[inline]
    pub(crate) fn packet_id(&mut self) -> Read<PacketId> {
        PacketId::new(self.two()?).ok_or(DecodeError::PacketIdZero)
    }
}

/// A variable byte integer at the head of `bytes`: its value and its length; `None` when it is not complete yet.
/// `shortest` refuses longer forms than needed, as MQTT 5 demands and MQTT 3 does not.
#[inline]
pub(crate) fn variable(bytes: &[u8], shortest: bool) -> Read<Option<(u32, usize)>> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            if shortest && at > 0 && *byte == 0 {
                return Err(DecodeError::IntegerOverlong);
            }
            return Ok(Some((value, at + 1)));
        }
    }
    if bytes.len() >= 4 { Err(DecodeError::IntegerTooLong) } else { Ok(None) }
}
