//! Bytes on the wire for a new version of a model, beside what other tools make of the same pair in the same run.
//!
//! ```sh
//! python tests/fixtures/make_pairs.py MODEL.onnx DIR
//! cargo bench -p muster-delta --bench sizes -- DIR...        # with zstd, xdelta3 and bsdiff installed
//! ```

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "a benchmark reads files and the clock, prints, and ends when it cannot go on"
)]

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use muster_delta::{Alignment, Decoder, Encoded, Encoder, cut};

/// What a chunk that the device has already costs: nothing, for it knows so from the manifest. One that travels has a frame.
const FRAME_BYTES: usize = 38;

/// How often decoding is timed.
const REPEATS: usize = 9;

struct Ours {
    bytes: usize,
    encode: Duration,
    decode: Duration,
}

fn ours(base: &[u8], target: &[u8]) -> Ours {
    let begin = Instant::now();
    let mut held = HashSet::new();
    each_chunk(base, |_, chunk| _ = held.insert(chunk));
    let alignment = Alignment::of(&base, &target).unwrap();
    let mut encoder = Encoder::new().unwrap();
    let mut sent: Vec<(u64, &[u8], Option<Encoded>)> = Vec::new();
    each_chunk(target, |start, chunk| {
        if !held.contains(chunk) {
            sent.push((start, chunk, encoder.encode(chunk, start, &alignment, Some(base)).unwrap()));
        }
    });
    let encode = begin.elapsed();
    let mut decoder = Decoder::new().unwrap();
    let decode = quickest(|| {
        let begin = Instant::now();
        for (start, chunk, encoded) in &sent {
            if let Some(encoded) = encoded {
                assert!(decoder.decode(&encoded.bytes, *start, chunk.len(), Some(base)).unwrap() == *chunk);
            }
        }
        Some(begin.elapsed())
    });
    let decode = decode.unwrap_or_default();
    let wire = |(_, chunk, encoded): &(u64, &[u8], Option<Encoded>)| {
        FRAME_BYTES + encoded.as_ref().map_or(chunk.len(), |encoded| encoded.bytes.len())
    };
    Ours { bytes: sent.iter().map(wire).sum(), encode, decode }
}

fn each_chunk<'a>(file: &'a [u8], mut each: impl FnMut(u64, &'a [u8])) {
    let mut at = 0;
    for length in cut(file) {
        each(at as u64, &file[at..at + length]);
        at += length;
    }
}

/// The shortest of several times: others use the machine, too.
fn quickest(time: impl FnMut() -> Option<Duration>) -> Option<Duration> {
    std::iter::repeat_with(time).take(REPEATS).flatten().min()
}

/// Runs a tool and returns the size of what it wrote to `out`, with the time it took; none when it is not installed.
fn peer(program: &str, arguments: &[&str], out: &Path) -> Option<(usize, Duration)> {
    let begin = Instant::now();
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
    status.success().then(|| (std::fs::metadata(out).unwrap().len() as usize, begin.elapsed()))
}

fn main() {
    let folders: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if folders.is_empty() {
        println!("name folders of pairs: cargo bench -p muster-delta --bench sizes -- DIR...");
        return;
    }
    let scratch = std::env::temp_dir().join(format!("muster-delta-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    let out = scratch.join("out");
    let out_text = out.to_str().unwrap();
    println!(
        "{:<40} {:>10} {:>10} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10} {:>12}",
        "pair", "bytes", "zstd -19", "muster", "patch", "xdelta3", "bsdiff", "encode/s", "decode/s", "zstd -d/s"
    );
    for folder in folders {
        for base in ["base", "base-int8"] {
            for change in ["metadata", "head", "nudged"] {
                let path = |name: String| Path::new(&folder).join(name).to_str().unwrap().to_owned();
                let (old, new) = (path(format!("{base}.onnx")), path(format!("{base}.{change}.onnx")));
                let (base_bytes, target) = (std::fs::read(&old).unwrap(), std::fs::read(&new).unwrap());
                let ours = ours(&base_bytes, &target);
                let _ = std::fs::remove_file(&out);
                let full = peer("zstd", &["-19", "-q", "-f", &new, "-o", out_text], &out);
                let unpacked = scratch.join("unpacked");
                let unzstd = quickest(|| {
                    let arguments = ["-d", "-q", "-f", out_text, "-o", unpacked.to_str().unwrap()];
                    full.and_then(|_| peer("zstd", &arguments, &unpacked)).map(|(_, took)| took)
                });
                let patch = format!("--patch-from={old}");
                let patched = peer("zstd", &["-19", "--long=27", "-q", "-f", &patch, &new, "-o", out_text], &out);
                let xdelta = peer("xdelta3", &["-9", "-f", "-e", "-s", &old, &new, out_text], &out);
                let bsdiff = peer("bsdiff", &[&old, &new, out_text], &out);
                let Some((full_bytes, _)) = full else {
                    println!("zstd is not installed");
                    return;
                };
                let percent = |bytes: usize| format!("{:.2} %", 100.0 * bytes as f64 / full_bytes as f64);
                let or_none =
                    |peer: Option<(usize, Duration)>| peer.map_or_else(|| "-".into(), |(bytes, _)| percent(bytes));
                let speed = |took: Duration| format!("{:.0} MB", target.len() as f64 / 1e6 / took.as_secs_f64());
                let name = Path::new(&folder).file_name().unwrap_or_default().to_string_lossy();
                println!(
                    "{:<40} {:>10} {:>10} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10} {:>12}",
                    format!("{name} {base} {change}"),
                    ours.bytes,
                    full_bytes,
                    percent(ours.bytes),
                    or_none(patched),
                    or_none(xdelta),
                    or_none(bsdiff),
                    speed(ours.encode),
                    speed(ours.decode),
                    unzstd.map_or_else(|| "-".into(), speed),
                );
            }
        }
    }
    std::fs::remove_dir_all(&scratch).unwrap();
}
