//! A virtual board: an image from `firmware-images/` in `qemu-system-aarch64`, started by its own boot loader through UEFI; that of a Raspberry Pi,
//! whose firmware QEMU has not, with the kernel, the command line and, up to the Raspberry Pi 3, the device tree that the firmware would take
//! from it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::process::Process;
use crate::{metrics, wait};

/// How long the board may take from power to a shell, and for whatever follows: emulated, with other work on the machine.
pub const BOARD_PATIENCE: Duration = Duration::from_secs(420);
/// How long one command in the board may take.
const COMMAND_PATIENCE: Duration = Duration::from_secs(120);
/// How long the board's shell is waited for until it is spoken to again.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Where the boot partition begins in every image.
const BOOT_OFFSET: &str = "@@1M";
/// Where Debian puts the firmware of virtual machines.
const FIRMWARE: &str = "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd";
/// As large a card as the image is put on.
const CARD_BYTES: u64 = 4 << 30;
/// What describes a Raspberry Pi 3 B to the kernel.
const PI_DEVICE_TREE: &str = "bcm2837-rpi-3-b.dtb";

/// Which board QEMU shows to the image.
#[derive(Debug)]
enum Board {
    /// The machine `virt` with UEFI.
    Virt,
    /// A Raspberry Pi 3 B, with what the kernel is told.
    RaspberryPi { command_line: String },
    /// The machine `virt` in place of a board that QEMU has not, with what the kernel is told.
    VirtWithKernel { command_line: String },
}

/// A board with a card of its own, on or off.
#[derive(Debug)]
pub struct Machine {
    board: Board,
    folder: PathBuf,
    disk: PathBuf,
    port: u16,
    /// Where this machine asks the board for predictions.
    pub inference_url: String,
    process: Option<Process>,
    shell: Option<UnixStream>,
    boots: u32,
    asked: u32,
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("{program} cannot be started"))?;
    ensure!(output.status.success(), "{program} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Machine {
    /// Puts `image` on a card in `folder`, with `files` in its boot partition's folder `muster`, as an owner does at a PC.
    /// A root shell on a serial port is switched on in what the kernel is told: that is how the test looks inside.
    ///
    /// # Errors
    /// When a tool is missing or the image is none.
    pub fn flash(image: &Path, folder: &Path, files: &[(&str, &str)]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let card = folder.join("card.img");
        run(Command::new("cp").arg("--sparse=always").args([image, &card]))?;
        let boot = format!("{}{BOOT_OFFSET}", card.display());
        let read = |name: &str| run(Command::new("mtype").args(["-i", &boot, name]));
        let copy = || {
            let mut command = Command::new("mcopy");
            command.args(["-o", "-i", &boot]);
            command
        };
        let mut put: Vec<(String, String)> =
            files.iter().map(|(name, text)| (format!("::/muster/{name}"), (*text).to_owned())).collect();
        let board = if let Ok(command_line) = read("::/cmdline.txt") {
            for name in ["vmlinuz", "initrd.img"] {
                run(copy().arg(format!("::/{name}")).arg(folder))?;
            }
            let command_line = command_line.trim_end();
            if run(copy().arg(format!("::/{PI_DEVICE_TREE}")).arg(folder)).is_ok() {
                // The shell has the serial port to itself. QEMU's watchdog goes off as soon as it is set.
                let command_line = command_line.replace(" console=ttyS1,115200", "");
                Board::RaspberryPi {
                    command_line: format!("{command_line} systemd.debug_shell=ttyS1 systemd.watchdog_sec=0"),
                }
            } else {
                Board::VirtWithKernel {
                    command_line: format!("{command_line} console=ttyAMA0 systemd.debug_shell=ttyS0"),
                }
            }
        } else {
            let entry = "::/loader/entries/muster.conf";
            put.push((entry.to_owned(), format!("{} systemd.debug_shell=ttyS0\n", read(entry)?.trim_end())));
            Board::Virt
        };
        for (to, text) in put {
            let file = folder.join("put");
            std::fs::write(&file, text)?;
            run(copy().arg(&file).arg(&to))?;
        }
        // What the board has not flushed is lost with the virtual machine: qcow2 keeps its own tables in memory.
        let disk = folder.join("card.qcow2");
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(&card)
            .arg(&disk)
            .arg(CARD_BYTES.to_string()))?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self {
            board,
            folder: folder.to_path_buf(),
            disk,
            port,
            inference_url: format!("http://127.0.0.1:{port}"),
            process: None,
            shell: None,
            boots: 0,
            asked: 0,
        })
    }

    fn console(&self) -> PathBuf {
        self.folder.join(format!("console-{}.log", self.boots))
    }

    /// QEMU with the board, whose shell answers at `socket`.
    fn qemu(&self, socket: &Path) -> Command {
        let (disk, console) = (self.disk.display(), self.console());
        let shell = format!("socket,id=shell,server=on,wait=off,path={}", socket.display());
        let network = format!("user,id=net,hostfwd=tcp:127.0.0.1:{}-:8600", self.port);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut command = Command::new("qemu-system-aarch64");
        command.args(["-display", "none", "-monitor", "none", "-chardev", &shell, "-netdev", &network]);
        let virt = |command: &mut Command| {
            command
                .args(["-M", "virt", "-cpu", "cortex-a53", "-smp", "2", "-m", "1024"])
                .args(["-drive", &format!("if=none,id=card,format=qcow2,file={disk}")])
                .args(["-device", "virtio-blk-pci,drive=card", "-device", "virtio-rng-pci", "-device", "i6300esb"])
                .args(["-device", "virtio-net-pci,netdev=net,romfile="])
                .args(["-serial", &format!("file:{}", console.display())])
                .args(["-device", "pci-serial,chardev=shell"]);
        };
        let kernel = |command: &mut Command, command_line: &str| {
            command
                .args(["-append", command_line])
                .args(["-kernel".as_ref(), self.folder.join("vmlinuz").as_os_str()])
                .args(["-initrd".as_ref(), self.folder.join("initrd.img").as_os_str()]);
        };
        match &self.board {
            Board::Virt => {
                virt(&mut command);
                command.args(["-bios", FIRMWARE]);
            }
            Board::VirtWithKernel { command_line } => {
                virt(&mut command);
                kernel(&mut command, command_line);
            }
            Board::RaspberryPi { command_line } => {
                // It has no clock of its own, and there is no time server here.
                kernel(&mut command, &format!("{command_line} systemd.clock_usec={}", now.as_micros()));
                command
                    .args(["-M", "raspi3b", "-action", "reboot=shutdown"])
                    .args(["-dtb".as_ref(), self.folder.join(PI_DEVICE_TREE).as_os_str()])
                    // An SD card has no cache to flush, so that nobody would ever have QEMU write its tables.
                    .args(["-drive", &format!("if=sd,format=qcow2,cache=writethrough,file={disk}")])
                    .args(["-device", "usb-net,netdev=net", "-serial", "null", "-serial", "chardev:shell"]);
            }
        }
        command
    }

    /// Switches it on and waits for its shell.
    ///
    /// # Errors
    /// When it does not come up; the end of its console is in the message.
    pub async fn power_on(&mut self) -> anyhow::Result<()> {
        self.boots += 1;
        let socket = self.folder.join("shell");
        if socket.exists() {
            std::fs::remove_file(&socket)?;
        }
        let mut process = Process::start("the board", &mut self.qemu(&socket), &self.folder.join("qemu.log"))?;
        let shell = wait::until("qemu opens the serial port", Duration::from_secs(30), async || {
            process.ensure_running()?;
            Ok(UnixStream::connect(&socket).await.ok())
        })
        .await?;
        self.process = Some(process);
        self.shell = Some(shell);
        let deadline = tokio::time::Instant::now() + BOARD_PATIENCE;
        while tokio::time::Instant::now() < deadline {
            self.ensure_on()?;
            // What is typed before the shell is there is lost, in part: an interrupt ends what may have been half a line. Then a shell that
            // neither edits its line nor echoes it.
            if self
                .type_until(b"\x03\nexec sh\nstty -echo\nPS1= PS2=\necho ready$((6*7))\n", "ready42", HANDSHAKE)
                .await
                .is_ok()
            {
                return Ok(());
            }
        }
        bail!("the board has no shell after {} s. {}", BOARD_PATIENCE.as_secs(), self.console_tail())
    }

    /// Runs a shell command on the board as root and gives what it printed, and its status.
    ///
    /// # Errors
    /// When the board does not answer in time.
    pub async fn command(&mut self, command: &str) -> anyhow::Result<(i32, String)> {
        match self.command_within(command, COMMAND_PATIENCE).await {
            Ok(answer) => Ok(answer),
            Err(error) => bail!("{command:?} on the board: {error:#}. {}", self.console_tail()),
        }
    }

    async fn command_within(&mut self, command: &str, limit: Duration) -> anyhow::Result<(i32, String)> {
        // Numbered, so that nothing late is taken for the answer, and put together by the shell, so that no echo is.
        self.asked += 1;
        let (begin, end) = (format!("<begin {}>\n", self.asked), format!("\n<end {} ", self.asked));
        let line = format!(
            "printf '<%s %d>\\n' begin {0}; {{ {command}\n}} 2>&1; printf '\\n<%s %d %d>\\n' end {0} $?\n",
            self.asked
        );
        let said = self.type_until(line.as_bytes(), &end, limit).await?;
        let (before, after) = said.rsplit_once(&end).context("an answer without its end")?;
        let status = after.split('>').next().unwrap_or_default();
        let answer = before.rsplit_once(&begin).map_or(before, |(_, answer)| answer);
        Ok((status.trim().parse().with_context(|| format!("{status:?} is no status"))?, answer.trim().to_owned()))
    }

    /// Types `line` and reads to the end of the line in which `wanted` stands.
    async fn type_until(&mut self, line: &[u8], wanted: &str, limit: Duration) -> anyhow::Result<String> {
        let shell = self.shell.as_mut().context("the board is off")?;
        let mut said = Vec::new();
        let mut buffer = vec![0; 4096];
        let talk = async {
            shell.write_all(line).await?;
            loop {
                let count = shell.read(&mut buffer).await?;
                ensure!(count > 0, "the serial port is closed");
                said.extend_from_slice(&buffer[..count]);
                let text = String::from_utf8_lossy(&said).replace('\r', "");
                if text.rsplit_once(wanted).is_some_and(|(_, rest)| rest.contains('\n')) {
                    return Ok(text);
                }
            }
        };
        tokio::time::timeout(limit, talk).await.context("no answer in time")?
    }

    /// Runs a command that has to succeed and gives what it printed.
    ///
    /// # Errors
    /// When it ends with another status than 0.
    pub async fn expect(&mut self, command: &str) -> anyhow::Result<String> {
        let (status, said) = self.command(command).await?;
        ensure!(status == 0, "{command:?} on the board ended with {status}: {said}");
        Ok(said)
    }

    /// Waits until a command on the board succeeds.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn until(&mut self, what: &str, command: &str) -> anyhow::Result<()> {
        wait::until(what, BOARD_PATIENCE, async || Ok((self.command(command).await?.0 == 0).then_some(())))
            .await
            .with_context(|| self.console_tail())
    }

    /// The value of a counter on the agent's `/metrics` page; `None` while it does not answer.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().ok()?;
        metrics::read(&client, &self.inference_url, name).await.ok()
    }

    /// Fails when it has gone off by itself.
    ///
    /// # Errors
    /// When it has.
    pub fn ensure_on(&mut self) -> anyhow::Result<()> {
        self.process.as_mut().context("the board is off")?.ensure_running()
    }

    /// Takes its power away, whatever it is doing.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn power_off(&mut self) -> anyhow::Result<()> {
        self.shell = None;
        self.process.take().context("the board is off")?.kill()
    }

    /// Has it shut down in order, and waits until it is off.
    ///
    /// # Errors
    /// When it does not.
    pub async fn shut_down(&mut self) -> anyhow::Result<()> {
        let shell = self.shell.as_mut().context("the board is off")?;
        shell.write_all(b"systemctl --no-block poweroff\n").await?;
        let mut process = self.process.take().context("the board is off")?;
        let off = wait::until("the board is off", COMMAND_PATIENCE, async || process.ended()).await;
        self.shell = None;
        off.map(drop).with_context(|| self.console_tail())
    }

    /// The last lines of its console.
    #[must_use]
    pub fn console_tail(&self) -> String {
        let text = String::from_utf8_lossy(&std::fs::read(self.console()).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        format!("Its console ends:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"))
    }
}
