//! Memory it takes to apply the chunks of a new version: for a small file and for a large one, each in a process of its own.
//!
//! ```sh
//! cargo bench -p muster-delta --bench memory
//! ```
//!
//! The files are read and written piece by piece, as the agent does; what the kernel keeps of them in its cache is not the process's.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_possible_truncation,
    reason = "a benchmark reads and writes files, prints, and ends when it cannot go on"
)]

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use muster_delta::{Alignment, Decoder, Encoder, cut};

const SIZES_MB: [usize; 2] = [5, 200];
const APPLY: &str = "--apply";
const GOAL_MIB: f64 = 16.0;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == APPLY) {
        apply(Path::new(&arguments[at + 1]));
        return;
    }
    println!("{:>8} {:>12} {:>12} {:>14} {:>10}", "file", "chunks sent", "apply/s", "peak memory", "goal");
    for megabytes in SIZES_MB {
        let folder = std::env::temp_dir().join(format!("muster-delta-memory-{}-{megabytes}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let sent = make(&folder, megabytes * 1_000_000);
        let begin = Instant::now();
        let child = Command::new(std::env::current_exe().unwrap()).arg(APPLY).arg(&folder).output().unwrap();
        let seconds = begin.elapsed().as_secs_f64();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
        assert!(std::fs::read(folder.join("target")).unwrap() == std::fs::read(folder.join("out")).unwrap());
        let peak_kib: f64 = String::from_utf8(child.stdout).unwrap().trim().parse().unwrap();
        println!(
            "{:>8} {:>12} {:>12} {:>14} {:>10}",
            format!("{megabytes} MB"),
            format!("{:.1} MB", sent as f64 / 1e6),
            format!("{:.0} MB", megabytes as f64 / seconds),
            format!("{:.1} MiB", peak_kib / 1024.0),
            format!("<= {GOAL_MIB} MiB"),
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// Makes both versions and the chunks from one to the other, and tells how many bytes these have.
fn make(folder: &Path, bytes: usize) -> usize {
    let (floats, ints) = (weights(bytes / 8), weights(bytes / 2));
    let float = |nudge: f32| -> Vec<u8> {
        let mut noise = noise();
        floats.iter().flat_map(|weight| (weight * (1.0 + nudge * noise())).to_le_bytes()).collect()
    };
    let int = |nudge: f32| -> Vec<u8> {
        let mut noise = noise();
        ints.iter().map(|weight| ((weight * 300.0 * (1.0 + nudge * noise())).round() as i8).cast_unsigned()).collect()
    };
    let base = onnx(&[(1, &float(0.0)), (3, &int(0.0))]);
    let target = onnx(&[(1, &float(1e-3)), (3, &int(1e-2))]);
    std::fs::write(folder.join("base"), &base).unwrap();
    std::fs::write(folder.join("target"), &target).unwrap();
    let alignment = Alignment::of(&base, &target).unwrap();
    let mut encoder = Encoder::new().unwrap();
    let mut chunks = BufWriter::new(File::create(folder.join("chunks")).unwrap());
    let (mut start, mut sent) = (0_usize, 0);
    for length in cut(&target) {
        let chunk = &target[start..start + length];
        let encoded = encoder.encode(chunk, start as u64, &alignment, Some(&base)).unwrap();
        let packed = encoded.as_ref().map_or(chunk, |encoded| &encoded.bytes);
        for number in [start, length, packed.len()] {
            chunks.write_all(&(number as u64).to_le_bytes()).unwrap();
        }
        chunks.write_all(packed).unwrap();
        (start, sent) = (start + length, sent + packed.len());
    }
    chunks.flush().unwrap();
    sent
}

/// Applies the chunks in `folder`, and prints the most memory this process has had, in KiB.
fn apply(folder: &Path) {
    let base = File::open(folder.join("base")).unwrap();
    let out = File::create(folder.join("out")).unwrap();
    let mut chunks = BufReader::new(File::open(folder.join("chunks")).unwrap());
    let mut decoder = Decoder::new().unwrap();
    let mut head = [0; 24];
    while chunks.read_exact(&mut head).is_ok() {
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
        let (start, length, packed) = (number(0), number(8) as usize, number(16) as usize);
        let mut bytes = vec![0; packed];
        chunks.read_exact(&mut bytes).unwrap();
        let chunk = if packed == length { bytes } else { decoder.decode(&bytes, start, length, Some(&base)).unwrap() };
        out.write_all_at(&chunk, start).unwrap();
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")).unwrap().trim());
}

/// Numbers from -1 to 1, the same each time.
fn noise() -> impl FnMut() -> f32 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn weights(count: usize) -> Vec<f32> {
    let mut noise = noise();
    (0..count).map(|_| (noise() + noise() + noise()) * 0.1).collect()
}

/// A model of these tensors and nothing else.
fn onnx(tensors: &[(u8, &[u8])]) -> Vec<u8> {
    let mut graph = Vec::new();
    for (data_type, content) in tensors {
        let mut tensor = vec![0x08, 1, 0x10, *data_type];
        tensor.extend(field(8, &[b'w', b'0' + data_type]));
        tensor.extend(field(9, content));
        graph.extend(field(5, &tensor));
    }
    field(7, &graph)
}

/// A protocol buffers field of bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(content);
    out
}
