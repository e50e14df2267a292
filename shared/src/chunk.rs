//! Chunks on the wire: the set of those wanted, and the frame that carries one.
//!
//! A bundle's chunks are numbered through all its files in the manifest's order
//! ([`crate::bundle::Manifest::chunks`]). Whether the bytes are right is decided by the device, against
//! the signed manifest; nothing here is trusted.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::Digest;
use crate::limits::MAX_CHUNKS;

/// A set of chunk numbers below a fixed length, one bit each; in JSON the bits are hexadecimal, chunk 0 being the
/// lowest bit of the first byte.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ChunkSetWire", into = "ChunkSetWire")]
pub struct ChunkSet {
    length: u32,
    bits: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChunkSetWire {
    length: u32,
    bits: String,
}

/// Why a text is not a chunk set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a set of chunks: {0}")]
pub struct ChunkSetError(&'static str);

impl ChunkSet {
    /// No chunk out of `length`. Lengths over [`MAX_CHUNKS`] are cut to it.
    #[must_use]
    pub fn empty(length: u32) -> Self {
        let length = length.min(u32::try_from(MAX_CHUNKS).unwrap_or(u32::MAX));
        Self { length, bits: vec![0; length.div_ceil(8) as usize] }
    }

    /// How many chunks there are, in the set or not.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Adds `index`; false when it is past the length or was there before.
    pub fn insert(&mut self, index: u32) -> bool {
        if index >= self.length || self.contains(index) {
            return false;
        }
        self.bits[index as usize / 8] |= 1 << (index % 8);
        true
    }

    /// Removes `index`; false when it was not there.
    pub fn remove(&mut self, index: u32) -> bool {
        if !self.contains(index) {
            return false;
        }
        self.bits[index as usize / 8] &= !(1 << (index % 8));
        true
    }

    /// Whether `index` is in the set.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        index < self.length && self.bits[index as usize / 8] & (1 << (index % 8)) != 0
    }

    /// How many chunks are in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.bits.iter().map(|b| b.count_ones()).sum()
    }

    /// Whether every chunk is in the set.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count() == self.length
    }

    /// The chunks in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.length).filter(|i| self.contains(*i))
    }

    /// The chunks not in the set, in order.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.length).filter(|i| !self.contains(*i))
    }
}

impl fmt::Debug for ChunkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkSet({}/{})", self.count(), self.length)
    }
}

impl From<ChunkSet> for ChunkSetWire {
    fn from(set: ChunkSet) -> Self {
        Self { length: set.length, bits: hex::encode(set.bits) }
    }
}

impl TryFrom<ChunkSetWire> for ChunkSet {
    type Error = ChunkSetError;
    fn try_from(wire: ChunkSetWire) -> Result<Self, ChunkSetError> {
        if wire.length as usize > MAX_CHUNKS {
            return Err(ChunkSetError("more chunks than a bundle may hold"));
        }
        let bits = hex::decode(&wire.bits).map_err(|_| ChunkSetError("the bits are not hexadecimal"))?;
        if bits.len() != wire.length.div_ceil(8) as usize {
            return Err(ChunkSetError("the bits do not fit the length"));
        }
        let spare = wire.length % 8;
        if spare != 0 && bits.last().is_some_and(|last| last >> spare != 0) {
            return Err(ChunkSetError("a bit past the length is set"));
        }
        Ok(Self { length: wire.length, bits })
    }
}

/// How the bytes of a chunk are written in its frame. `muster-delta` packs and unpacks them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkEncoding {
    /// As they are.
    Plain,
    /// In a short form, which may take the base that the request named to read it.
    Packed,
}

/// How a device takes the chunks that it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accepts {
    /// As they are.
    #[default]
    Plain,
    /// In a short form, or as they are where no form is shorter.
    Packed {
        /// Digest of the manifest of a bundle that the device holds. A chunk may be written as what differs from the file of the
        /// same path in that bundle.
        base: Option<Digest>,
    },
}

/// One chunk on its way to a device: version, encoding, manifest digest (32 bytes), chunk number (4 bytes, big
/// endian), then the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkFrame<'a> {
    /// Which bundle it belongs to.
    pub manifest: Digest,
    /// Its number in that bundle.
    pub index: u32,
    /// How `bytes` are written.
    pub encoding: ChunkEncoding,
    /// The content.
    pub bytes: &'a [u8],
}

/// Why bytes are not a chunk frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkFrameError {
    /// Shorter than the header.
    #[error("a chunk frame has at least {HEADER_BYTES} bytes, these are {0}")]
    Short(usize),
    /// A version or encoding this side does not know.
    #[error("chunk frame version {version} with encoding {encoding} is unknown: the peer is newer")]
    Unknown {
        /// The frame's version.
        version: u8,
        /// The frame's encoding.
        encoding: u8,
    },
}

const HEADER_BYTES: usize = 1 + 1 + 32 + 4;
const FRAME_VERSION: u8 = 1;
const ENCODING_PLAIN: u8 = 0;
const ENCODING_PACKED: u8 = 1;

impl<'a> ChunkFrame<'a> {
    /// The frame as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.bytes.len());
        out.push(FRAME_VERSION);
        out.push(match self.encoding {
            ChunkEncoding::Plain => ENCODING_PLAIN,
            ChunkEncoding::Packed => ENCODING_PACKED,
        });
        out.extend_from_slice(self.manifest.as_bytes());
        out.extend_from_slice(&self.index.to_be_bytes());
        out.extend_from_slice(self.bytes);
        out
    }

    /// Reads a frame, borrowing its bytes.
    ///
    /// # Errors
    /// [`ChunkFrameError`] when the header is short or unknown.
    pub fn decode(frame: &'a [u8]) -> Result<Self, ChunkFrameError> {
        let Some((header, bytes)) = frame.split_first_chunk::<HEADER_BYTES>() else {
            return Err(ChunkFrameError::Short(frame.len()));
        };
        let [version, encoding, rest @ ..] = header;
        let encoding = match (*version, *encoding) {
            (FRAME_VERSION, ENCODING_PLAIN) => ChunkEncoding::Plain,
            (FRAME_VERSION, ENCODING_PACKED) => ChunkEncoding::Packed,
            (version, encoding) => return Err(ChunkFrameError::Unknown { version, encoding }),
        };
        let (digest, index) = rest.split_at(32);
        let mut manifest = [0; 32];
        manifest.copy_from_slice(digest);
        let mut number = [0; 4];
        number.copy_from_slice(index);
        Ok(Self { manifest: Digest::from_bytes(manifest), index: u32::from_be_bytes(number), encoding, bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::damage;

    proptest! {
        #[test]
        fn a_chunk_set_behaves_like_a_set(length in 0u32..200, steps in prop::collection::vec((any::<bool>(), 0u32..220), 0..80)) {
            let mut set = ChunkSet::empty(length);
            let mut model = BTreeSet::new();
            for (insert, index) in steps {
                if insert {
                    prop_assert_eq!(set.insert(index), index < length && model.insert(index));
                } else {
                    prop_assert_eq!(set.remove(index), model.remove(&index));
                }
            }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.count() as usize, model.len());
            prop_assert_eq!(set.missing().count() + model.len(), length as usize);
            let json = serde_json::to_string(&set).unwrap();
            prop_assert_eq!(serde_json::from_str::<ChunkSet>(&json).unwrap(), set);
        }

        #[test]
        fn any_bytes_are_a_frame_or_refused(known: bool, encoding in ENCODING_PLAIN..=ENCODING_PACKED, bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut bytes = bytes;
            if known {
                bytes.iter_mut().zip([FRAME_VERSION, encoding]).for_each(|(byte, known)| *byte = known);
            }
            match ChunkFrame::decode(&bytes) {
                Ok(frame) => {
                    prop_assert_eq!(frame.encode(), bytes.clone());
                    prop_assert_eq!(frame.bytes.len(), bytes.len() - HEADER_BYTES);
                }
                Err(ChunkFrameError::Short(length)) => prop_assert!(length == bytes.len() && length < HEADER_BYTES),
                Err(ChunkFrameError::Unknown { .. }) => prop_assert!(bytes[0] != FRAME_VERSION || bytes[1] > ENCODING_PACKED),
            }
        }

        #[test]
        fn damaged_sets_are_refused_or_sets(json in damage::json(serde_json::json!({"length": 13, "bits": "a51f"}))) {
            if let Ok(set) = serde_json::from_value::<ChunkSet>(json) {
                prop_assert_eq!(set.iter().count(), set.count() as usize);
                prop_assert_eq!(set.count() as usize + set.missing().count(), set.length() as usize);
                prop_assert!(set.length() as usize <= MAX_CHUNKS);
            }
        }

        #[test]
        fn frames_round_trip(index: u32, packed: bool, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let encoding = if packed { ChunkEncoding::Packed } else { ChunkEncoding::Plain };
            let frame = ChunkFrame { manifest: Digest::of(&bytes), index, encoding, bytes: &bytes };
            let encoded = frame.encode();
            prop_assert_eq!(ChunkFrame::decode(&encoded).unwrap(), frame);
        }
    }

    #[test]
    fn hostile_sets_are_refused() {
        for bad in [
            r#"{"length":4294967295,"bits":""}"#,
            r#"{"length":9,"bits":"ff"}"#,
            r#"{"length":4,"bits":"ff"}"#,
            r#"{"length":8,"bits":"zz"}"#,
        ] {
            assert!(serde_json::from_str::<ChunkSet>(bad).is_err(), "{bad}");
        }
    }
}
