//! Signing by a command, for keys in an HSM, a token or a key service.
//!
//! The command gets the exact bytes to be signed (DSSE's pre-authentication encoding) on standard input and prints the ed25519
//! signature on standard output, as 64 bytes or in base64. It runs in the folder of the key file, and stays in this process's
//! group, so that it may ask for a PIN on the terminal.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use muster_shared::trust::PublicKey;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::command::block_on;
use crate::failure::Failure;
use crate::key_file::CommandKey;
use crate::output;

const TIME_LIMIT_S: u32 = 60;
/// A signature in base64 has 88 characters.
const MAX_STDOUT_BYTES: u64 = 1024;
/// As much of the end of what a command says against itself is repeated.
const MAX_STDERR_BYTES: usize = 2048;

/// A key that a command signs with.
#[derive(Debug)]
pub(crate) struct CommandSigner {
    key_file: PathBuf,
    key: CommandKey,
}

/// How a command ended.
struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
}

impl CommandSigner {
    /// The key that `key_file` describes.
    pub(crate) fn new(key_file: &Path, key: CommandKey) -> Self {
        Self { key_file: key_file.to_owned(), key }
    }

    /// Whose signatures are expected.
    pub(crate) fn public(&self) -> &PublicKey {
        &self.key.public_key
    }

    /// What the command gives for `message`. Whether it is a signature of the key is not checked here.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be run, fails, takes too long, or prints what has not the form of a signature.
    pub(super) fn sign(&self, message: &[u8]) -> Result<[u8; 64], Failure> {
        let mut said = Tail::default();
        let ended = block_on(self.run(message, &mut said)).map_err(|failure| self.fault(failure.chain(), &said))?;
        if ended.stdout.len() as u64 > MAX_STDOUT_BYTES {
            return Err(self.fault(format!("it printed more than {MAX_STDOUT_BYTES} bytes, and no signature"), &said));
        }
        if !ended.status.success() {
            return Err(self.fault(format!("it failed with {}", ended.status), &said));
        }
        signature(&ended.stdout).map_err(|why| self.fault(why, &said))
    }

    /// The failure of a command whose signature does not verify.
    pub(super) fn wrong_signature(&self) -> Failure {
        Failure::unmet(format!(
            "{}: {} signs with another key than {}, or signs something else than its input, such as a digest of it",
            self.key_file.display(),
            self.program(),
            self.key.public_key.id().short(),
        ))
    }

    fn program(&self) -> &str {
        self.key.command.first().map_or("", String::as_str)
    }

    fn fault(&self, why: String, said: &Tail) -> Failure {
        Failure::unmet(format!("{}: {}: {why}{said}", self.key_file.display(), self.program()))
    }

    async fn run(&self, message: &[u8], said: &mut Tail) -> Result<Ended, Failure> {
        let mut child = self.start().map_err(|error| Failure::unmet("it cannot be run").because(error))?;
        let limit = self.key.time_limit_s.map_or(TIME_LIMIT_S, u32::from);
        let ended = tokio::time::timeout(Duration::from_secs(limit.into()), talk(&mut child, message, said)).await;
        match ended {
            Ok(ended) => ended.map_err(|error| Failure::unmet("it cannot be listened to").because(error)),
            Err(_) => {
                // Waits until it is gone, too.
                let _ = child.kill().await;
                Err(Failure::unmet(format!(
                    "it gave no signature within {limit} s and was ended; time-limit-s allows more"
                )))
            }
        }
    }

    fn start(&self) -> io::Result<Child> {
        let folder = match self.key_file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => std::path::absolute(folder)?,
            _ => std::env::current_dir()?,
        };
        // A bare name is looked up in PATH; every other is found from the key file, wherever this is run.
        let program = match self.program() {
            name if name.contains(std::path::MAIN_SEPARATOR) => folder.join(name),
            name => PathBuf::from(name),
        };
        Command::new(program)
            .args(self.key.command.iter().skip(1))
            .current_dir(folder)
            // Not its business.
            .env_remove("MUSTER_TOKEN")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }
}

/// Feeds the command, listens to it, and waits for its end.
async fn talk(child: &mut Child, message: &[u8], said: &mut Tail) -> io::Result<Ended> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // One that does not read it all will be known by its signature.
            let _ = stdin.write_all(message).await;
        }
    };
    let (status, (), out, err) = tokio::join!(child.wait(), feed, first_bytes(stdout), said.follow(stderr));
    err?;
    Ok(Ended { status: status?, stdout: out? })
}

/// At most one byte more than a command may print. Then the pipe is closed, which ends one that would go on for ever.
async fn first_bytes(stdout: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stdout) = stdout {
        stdout.take(MAX_STDOUT_BYTES + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn signature(printed: &[u8]) -> Result<[u8; 64], String> {
    let raw = <[u8; 64]>::try_from(printed).ok();
    let encoded = || {
        // Tools break lines where they like.
        let text: Vec<u8> = printed.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let bytes = STANDARD.decode(&text).or_else(|_| URL_SAFE.decode(&text)).ok()?;
        <[u8; 64]>::try_from(bytes).ok()
    };
    raw.or_else(encoded).ok_or_else(|| {
        format!("it printed {} bytes that are no ed25519 signature: 64 bytes, or these in base64", printed.len())
    })
}

/// The end of what a command said on standard error.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    /// Reads to the end. Somebody at the terminal sees it at once: it may ask them to touch a token.
    async fn follow(&mut self, stderr: Option<impl AsyncRead + Unpin>) -> io::Result<()> {
        let Some(mut stderr) = stderr else { return Ok(()) };
        let live = io::stderr().is_terminal();
        let mut buffer = [0; 512];
        loop {
            let count = stderr.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            let new = &buffer[..count];
            if live {
                output::note(String::from_utf8_lossy(new).trim_end());
            }
            self.bytes.extend_from_slice(new);
            let surplus = self.bytes.len().saturating_sub(MAX_STDERR_BYTES);
            self.bytes.drain(..surplus);
        }
    }
}

impl std::fmt::Display for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match String::from_utf8_lossy(&self.bytes).trim() {
            "" => f.write_str("; it said nothing on standard error"),
            text => write!(f, "; it said: {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_signature_is_64_bytes_or_their_base64() {
        let bytes: [u8; 64] = std::array::from_fn(|at| u8::try_from(at * 4).unwrap());
        let base64 = STANDARD.encode(bytes);
        for printed in [
            bytes.to_vec(),
            base64.clone().into_bytes(),
            format!("{base64}\n").into_bytes(),
            format!(" {}\r\n", URL_SAFE.encode(bytes)).into_bytes(),
            format!("{}\n{}\n", &base64[..64], &base64[64..]).into_bytes(),
        ] {
            assert_eq!(signature(&printed).unwrap(), bytes);
        }
        for printed in [&b""[..], &bytes[1..], &[&bytes[..], b"\n"].concat(), &base64.as_bytes()[4..], b"Signature: x"]
        {
            assert!(signature(printed).unwrap_err().contains("no ed25519 signature"));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_signature_or_refused(printed in prop::collection::vec(any::<u8>(), 0..200)) {
            match signature(&printed) {
                Ok(bytes) => prop_assert!(printed.len() > 64 || printed == bytes),
                Err(why) => prop_assert!(printed.len() != 64 && why.contains("64 bytes")),
            }
        }
    }
}
