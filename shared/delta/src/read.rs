//! Reading a file where it is wanted, without having it in memory.

use std::io;
use std::os::unix::fs::FileExt as _;

/// Bytes that can be read anywhere.
pub trait ReadAt {
    /// How many there are.
    fn length(&self) -> u64;

    /// Fills `buffer` with the bytes from `start` on.
    ///
    /// # Errors
    /// When they cannot be read, or there are fewer.
    fn read_at(&self, start: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(start).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn length(&self) -> u64 {
        (**self).length()
    }

    fn read_at(&self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(start, buffer)
    }
}

impl ReadAt for Vec<u8> {
    fn length(&self) -> u64 {
        self.as_slice().length()
    }

    fn read_at(&self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(start, buffer)
    }
}

#[expect(
    clippy::disallowed_types,
    reason = "whoever opened it decided on reading; both sides read their files this way"
)]
impl ReadAt for std::fs::File {
    /// None where the system does not say: then there is nothing to read.
    fn length(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, start)
    }
}
