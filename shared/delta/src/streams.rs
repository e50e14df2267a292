//! Streams of bytes, each written in the shortest of a few ways.
//!
//! Planes of differences are mostly zero with single values strewn in: runs of zeros and the values between them are written apart
//! then, which a general compressor alone does not find (a byte of every hundred costs it about twice as much).

use crate::arithmetic;
use crate::format::{put_varint, take_varint};

const ZERO: u8 = 0;
const PLAIN: u8 = 1;
const ZSTD: u8 = 2;
const RUNS: u8 = 3;
const ARITHMETIC: u8 = 4;

/// A run of zeros this long or longer goes on in the next byte.
const LONG_RUN: u8 = 255;
/// Compression is tried from this length on, in bytes.
const MIN_COMPRESSED_BYTES: usize = 16;

/// Writes streams.
pub(crate) struct Packer {
    zstd: zstd::bulk::Compressor<'static>,
}

impl Packer {
    /// One that compresses at zstd's `level`.
    pub(crate) fn new(level: i32) -> std::io::Result<Self> {
        let mut zstd = zstd::bulk::Compressor::new(level)?;
        // Lengths are known to the reader, and digests checked.
        zstd.include_contentsize(false)?;
        zstd.include_checksum(false)?;
        zstd.include_dictid(false)?;
        Ok(Self { zstd })
    }

    /// Appends `stream`, which must not be empty. Where it is differences of single bytes, `old` is what they are from; otherwise it
    /// is empty.
    pub(crate) fn put(&mut self, out: &mut Vec<u8>, stream: &[u8], old: &[u8]) {
        let zeros = stream.iter().filter(|byte| **byte == 0).count();
        if zeros == stream.len() {
            out.push(ZERO);
            return;
        }
        let begin = out.len();
        self.put_whole(out, stream);
        if zeros > stream.len() / 2 {
            let mut runs = vec![RUNS];
            self.put_runs(&mut runs, stream);
            if runs.len() < out.len() - begin {
                out.truncate(begin);
                out.append(&mut runs);
            }
            if old.len() == stream.len() {
                let coded = arithmetic::encode(stream, old);
                if coded.len() + 4 < out.len() - begin {
                    out.truncate(begin);
                    out.push(ARITHMETIC);
                    put_varint(out, coded.len() as u64);
                    out.extend_from_slice(&coded);
                }
            }
        }
    }

    fn put_whole(&mut self, out: &mut Vec<u8>, stream: &[u8]) {
        let compressed = match stream.len() {
            0..MIN_COMPRESSED_BYTES => None,
            _ => self.zstd.compress(stream).ok(),
        };
        match compressed.filter(|compressed| compressed.len() + 2 < stream.len()) {
            Some(compressed) => {
                out.push(ZSTD);
                put_varint(out, compressed.len() as u64);
                out.extend_from_slice(&compressed);
            }
            None => {
                out.push(PLAIN);
                out.extend_from_slice(stream);
            }
        }
    }

    fn put_runs(&mut self, out: &mut Vec<u8>, stream: &[u8]) {
        let (mut runs, mut values) = (Vec::new(), Vec::new());
        let mut zeros = 0_usize;
        for byte in stream {
            if *byte == 0 {
                zeros += 1;
                continue;
            }
            while zeros >= usize::from(LONG_RUN) {
                runs.push(LONG_RUN);
                zeros -= usize::from(LONG_RUN);
            }
            runs.push(u8::try_from(zeros).unwrap_or(LONG_RUN));
            zeros = 0;
            values.push(*byte);
        }
        put_varint(out, runs.len() as u64);
        put_varint(out, values.len() as u64);
        self.put_whole(out, &runs);
        self.put_whole(out, &values);
    }
}

/// Reads streams.
pub(crate) struct Unpacker {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Unpacker {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { zstd: zstd::bulk::Decompressor::new()? })
    }

    /// Reads a stream of `length` bytes off the front of `bytes`; none when there is no such stream. `old` is what it was written
    /// with.
    pub(crate) fn take(&mut self, bytes: &mut &[u8], length: usize, old: &[u8]) -> Option<Vec<u8>> {
        match bytes.split_first()? {
            (&ZERO, rest) => {
                *bytes = rest;
                Some(vec![0; length])
            }
            (&ARITHMETIC, rest) if old.len() == length => {
                *bytes = rest;
                let coded = usize::try_from(take_varint(bytes)?).ok()?;
                let (coded, rest) = bytes.split_at_checked(coded)?;
                *bytes = rest;
                Some(arithmetic::decode(coded, old))
            }
            (&RUNS, rest) => {
                *bytes = rest;
                self.take_runs(bytes, length)
            }
            _ => self.take_whole(bytes, length),
        }
    }

    fn take_whole(&mut self, bytes: &mut &[u8], length: usize) -> Option<Vec<u8>> {
        let (method, rest) = bytes.split_first()?;
        *bytes = rest;
        match *method {
            PLAIN => {
                let (stream, rest) = bytes.split_at_checked(length)?;
                *bytes = rest;
                Some(stream.to_vec())
            }
            ZSTD => {
                let compressed = usize::try_from(take_varint(bytes)?).ok()?;
                let (compressed, rest) = bytes.split_at_checked(compressed)?;
                *bytes = rest;
                self.zstd.decompress(compressed, length).ok().filter(|stream| stream.len() == length)
            }
            _ => None,
        }
    }

    fn take_runs(&mut self, bytes: &mut &[u8], length: usize) -> Option<Vec<u8>> {
        let mut bounded = || usize::try_from(take_varint(bytes)?).ok().filter(|count| *count <= length);
        let (runs, values) = (bounded()?, bounded()?);
        let (runs, values) = (self.take_whole(bytes, runs)?, self.take_whole(bytes, values)?);
        let mut stream = vec![0; length];
        let (mut at, mut values) = (0_usize, values.iter());
        for run in &runs {
            at += usize::from(*run);
            if *run < LONG_RUN {
                *stream.get_mut(at)? = *values.next()?;
                at += 1;
            }
        }
        values.next().is_none().then_some(stream)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(stream: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Packer::new(3).unwrap().put(&mut out, stream, &[]);
        let mut bytes = out.as_slice();
        assert_eq!(Unpacker::new().unwrap().take(&mut bytes, stream.len(), &[]).as_deref(), Some(stream));
        assert!(bytes.is_empty());
        out
    }

    #[test]
    fn zeros_cost_a_byte_and_strewn_values_little_more_than_their_entropy() {
        assert_eq!(packed(&[0; 60_000]), [ZERO]);
        // One byte of 64 is 1 or 2, at no regular place: a run takes log2(64) + log2(e) bits, and its value one more.
        let mut state = 1_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16).to_le_bytes()[0]
        };
        let strewn: Vec<u8> = (0..65_536).map(|_| if random() % 64 == 0 { 1 + random() % 2 } else { 0 }).collect();
        let values = strewn.iter().filter(|byte| **byte != 0).count();
        let entropy_bytes = values as f64 * 8.44 / 8.0;
        assert!((packed(&strewn).len() as f64) < entropy_bytes * 1.25, "{} {entropy_bytes}", packed(&strewn).len());
    }

    proptest! {
        #[test]
        fn streams_come_back(
            values in prop::collection::vec((0usize..600, 1u8..4), 0..40),
            noise in prop::collection::vec(any::<u8>(), 1..400),
            tail in 0usize..300,
        ) {
            let mut stream = noise;
            for (zeros, value) in values {
                stream.resize(stream.len() + zeros, 0);
                stream.push(value);
            }
            stream.resize(stream.len() + tail, 0);
            prop_assert!(packed(&stream).len() <= stream.len() + 1);
        }

        #[test]
        fn any_bytes_are_a_stream_or_not(method in 0u8..6, rest in prop::collection::vec(any::<u8>(), 0..100), length in 1usize..1_000) {
            let mut bytes = vec![method];
            bytes.extend(rest);
            if let Some(stream) = Unpacker::new().unwrap().take(&mut bytes.as_slice(), length, &vec![3; length]) {
                prop_assert_eq!(stream.len(), length);
            }
        }
    }
}
