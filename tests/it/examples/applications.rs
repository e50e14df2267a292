//! The four programs that ask about the lines of a file.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use muster_tests::fleet::PATIENCE;
use muster_tests::wait;

use super::{Example, Golden, Stage, folder, golden, python};
use crate::stage;

/// How the programs are started on `file`: some attempts more than by default, so that a slow machine does not end them.
fn commands(stage: &Stage, file: &Path, over_again: bool) -> anyhow::Result<Vec<(&'static str, Command)>> {
    let mut curl = Command::new(folder().join("curl/predict.sh"));
    curl.arg("--socket").arg(&stage.socket).args(["--attempts", "30"]);
    let mut c = Command::new(stage.folder.join("predict"));
    c.arg("-s").arg(&stage.socket).args(["-a", "30"]);
    let mut python = Command::new(python()?);
    python.arg(folder().join("python/predict.py")).args(["--url", &stage.url(), "--attempts", "30"]);
    let mut rust = Command::new(stage.fleet.binaries.agent.with_file_name("muster-example-client"));
    rust.arg("--socket").arg(&stage.socket).args(["--attempts", "30"]);
    if over_again {
        for command in [&mut curl, &mut python, &mut rust] {
            command.args(["--interval-s", "1"]);
        }
        c.args(["-r", "1"]);
    }
    let mut commands = vec![("curl", curl), ("c", c), ("python", python), ("rust", rust)];
    for (_, command) in &mut commands {
        command.arg(file);
    }
    Ok(commands)
}

/// The golden inputs as the programs read them, under a heading, their class in the first column, an empty line after each.
fn write_rows(path: &Path, golden: &[Golden]) -> anyhow::Result<()> {
    let mut text = "label,pixels\n".to_owned();
    for example in golden {
        write!(text, "{}", example.class())?;
        for pixel in &example.pixels {
            write!(text, ",{pixel}")?;
        }
        text.push_str("\n\n");
    }
    Ok(std::fs::write(path, text)?)
}

/// The lines that are predictions have to be those of `golden`, in order, from `first` on.
fn hold_against(said: &str, golden: &[Golden], name: &str) -> anyhow::Result<usize> {
    let mut lines = 0;
    for line in said.lines().filter(|line| line.contains(" digits@")) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [number, class, probability, "digits@1.0.0"] = fields[..] else { anyhow::bail!("{name}: {line}") };
        let expected = lines % golden.len();
        ensure!(number.parse::<usize>()? == expected + 1, "{name}: {line} is not line {}", expected + 1);
        ensure!(golden[expected].allows(class.parse()?, probability.parse()?), "{name}: {line}");
        lines += 1;
    }
    Ok(lines)
}

/// One golden input as a PGM image.
fn pgm(example: &Golden) -> Vec<u8> {
    let mut image = b"P5\n# a digit\n8 8\n16\n".to_vec();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "grey values are whole numbers up to 16"
    )]
    image.extend(example.pixels.iter().map(|pixel| *pixel as u8));
    image
}

#[test]
#[ignore = "needs a C compiler, curl, jq and tritonclient: .ci/examples PYTHON"]
fn applications_wait_for_the_agent_and_get_what_the_model_says() {
    stage::run(async |binaries, folder| {
        let golden = golden()?;
        let rows = folder.join("rows.csv");
        write_rows(&rows, &golden)?;
        let made = Command::new("make")
            .args(["--silent", "-C"])
            .arg(super::folder().join("c"))
            .arg(format!("OUT={}", folder.join("predict").display()))
            .output()?;
        ensure!(made.status.success(), "the C program does not compile: {}", String::from_utf8_lossy(&made.stderr));

        let mut stage = Stage::set(&binaries, &folder).await?;
        // No socket, then no model; then every answer.
        let mut examples = Vec::new();
        for (name, mut command) in commands(&stage, &rows, false)? {
            examples.push(Example::start(&stage, name, &mut command)?);
        }
        for example in &mut examples {
            example.says("trying again").await?;
        }
        stage.open().await?;
        for example in &mut examples {
            example.says("no model is being served yet").await?;
        }
        stage.serve().await?;
        for example in &mut examples {
            example.ends_well().await?;
            let lines = hold_against(&example.said()?, &golden, example.name)?;
            ensure!(lines == golden.len(), "{}: {lines} predictions for {}", example.name, golden.len());
        }

        // The C program takes images, too.
        let image = folder.join("digit.pgm");
        std::fs::write(&image, pgm(&golden[3]))?;
        let output = Command::new(folder.join("predict")).arg("-s").arg(&stage.socket).arg(&image).output()?;
        let said = String::from_utf8(output.stdout)?;
        let class = said.split(' ').nth(1).with_context(|| format!("no prediction: {said:?}"))?;
        ensure!(output.status.success() && class == golden[3].class().to_string(), "{said}");

        // What cannot pass is not tried again.
        let short = folder.join("short.csv");
        std::fs::write(&short, "1,2,3\n")?;
        for (name, mut command) in commands(&stage, &short, false)? {
            let output = command.output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.code() == Some(1) && said.contains("refused with 400"), "{name}: {said}");
        }

        // The agent stands still and goes on, and so do they; then they are told to stop.
        let mut examples = Vec::new();
        for (name, mut command) in commands(&stage, &rows, true)? {
            examples.push(Example::start(&stage, name, &mut command)?);
        }
        for example in &mut examples {
            example.says("10 ").await?;
        }
        stage.signal("-STOP")?;
        for example in &mut examples {
            example.says("trying again").await?;
        }
        stage.signal("-CONT")?;
        for example in &mut examples {
            let before = hold_against(&example.said()?, &golden, example.name)?;
            wait::until("predictions go on", PATIENCE, async || {
                Ok((hold_against(&example.said()?, &golden, example.name)? > before).then_some(()))
            })
            .await?;
            example.stops_cleanly().await?;
        }
        Ok(())
    });
}
