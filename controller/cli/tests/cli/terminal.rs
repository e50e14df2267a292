//! The binary on a terminal, where it asks people.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::run::Desk;

const PATIENCE: Duration = Duration::from_secs(60);

/// The binary on a terminal of its own, made by script(1).
pub(crate) struct Terminal {
    script: Child,
    shown: Arc<Mutex<String>>,
    device: String,
}

impl Terminal {
    /// Starts the binary with `arguments`.
    pub(crate) fn start(desk: &Desk, arguments: &str) -> Self {
        let _ = fs::remove_file(desk.path("tty"));
        let command = format!("tty > tty.new && mv tty.new tty && exec {} {arguments}", env!("CARGO_BIN_EXE_muster"));
        let mut script = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"])
            .current_dir(desk.path(""))
            .env("SHELL", "/bin/sh")
            .env_remove("MUSTER_KEY_PASSPHRASE_FILE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let mut stdout = script.stdout.take().unwrap();
        let into = shown.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 256];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                into.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        wait("the terminal", || desk.path("tty").exists());
        let device = String::from_utf8(desk.read("tty")).unwrap().trim().to_owned();
        Self { script, shown, device }
    }

    /// All that the terminal has shown so far.
    pub(crate) fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    /// Types `line` once `prompt` is there and the terminal has stopped repeating what is typed.
    pub(crate) fn answer(&mut self, prompt: &str, line: &str) {
        wait(prompt, || self.shown().contains(prompt));
        wait("a terminal that repeats nothing", || {
            let stty = Command::new("stty").args(["-a", "-F", &self.device]).output().unwrap();
            String::from_utf8(stty.stdout).unwrap().split_whitespace().any(|word| word == "-echo")
        });
        let stdin = self.script.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits for the end, and gives the exit code and all that the terminal showed.
    pub(crate) fn end(mut self) -> (i32, String) {
        let status = self.script.wait().unwrap();
        wait("the last words", || Arc::strong_count(&self.shown) == 1);
        (status.code().unwrap(), self.shown())
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !until() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}
