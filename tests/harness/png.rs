//! Gray PNG files, without a compressor.

/// `pixels` of an image `width` pixels wide, row by row, as a PNG file (W3C, "Portable Network Graphics", third edition).
#[must_use]
pub fn gray(width: u16, pixels: &[u8]) -> Vec<u8> {
    let rows = pixels.chunks(usize::from(width.max(1)));
    let height = u32::try_from(rows.len()).unwrap_or(u32::MAX);
    // Each row begins with its filter, which is none.
    let raw: Vec<u8> = rows.flat_map(|row| std::iter::once(0).chain(row.iter().copied())).collect();
    let mut zlib = vec![0x78, 0x01];
    let blocks = raw.chunks(usize::from(u16::MAX));
    let last = blocks.len().saturating_sub(1);
    for (at, block) in blocks.enumerate() {
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        zlib.push(u8::from(at == last));
        zlib.extend(length.to_le_bytes());
        zlib.extend((!length).to_le_bytes());
        zlib.extend(block);
    }
    zlib.extend(adler32(&raw).to_be_bytes());
    // Eight bits a pixel, gray, deflated, not interlaced.
    let header = [&u32::from(width).to_be_bytes()[..], &height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let chunks = [(b"IHDR", header), (b"IDAT", zlib), (b"IEND", Vec::new())];
    let signature = b"\x89PNG\r\n\x1a\n".to_vec();
    chunks.into_iter().fold(signature, |mut png, (kind, data)| {
        png.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
        let named = [&kind[..], &data].concat();
        png.extend(&named);
        png.extend(crc32(&named).to_be_bytes());
        png
    })
}

fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    b << 16 | a
}

fn crc32(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc)))
}
