//! Manual pages and shell completions of a program, made of its own arguments so that they say nothing else.
//!
//! This decides where packages find them; what they say, the programs' help texts do.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The shells, by the names of their folders.
const SHELLS: [(&str, Shell); 3] = [("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)];

/// A chapter of the manual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Commands of everybody.
    Commands,
    /// Services, and commands of the administrator.
    Administration,
}

impl Section {
    const fn number(self) -> &'static str {
        match self {
            Self::Commands => "1",
            Self::Administration => "8",
        }
    }
}

/// Writes into `folder`, which is made where it is missing: below `man` a page for the program and each of its commands that is not hidden, and
/// below `bash`, `zsh` and `fish` its completions, each under the name by which that shell looks for it.
///
/// # Errors
/// What the system says of a folder or file that cannot be written.
pub fn write(command: Command, section: Section, folder: &Path) -> io::Result<()> {
    let name = command.get_name().to_owned();
    for (shell_name, shell) in SHELLS {
        let completions = folder.join(shell_name);
        fs::create_dir_all(&completions)?;
        clap_complete::generate_to(shell, &mut command.clone(), &name, &completions)?;
    }
    // As a package names it, and as bash's own loader looks for it: without the ending.
    fs::rename(folder.join("bash").join(format!("{name}.bash")), folder.join("bash").join(&name))?;
    let pages = folder.join("man");
    fs::create_dir_all(&pages)?;
    // What `help` does for each command needs no page of its own.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let source = format!("{name} {}", command.get_version().unwrap_or_default());
    write_pages(command, section, source.trim_end(), &pages)
}

/// Pages of `command` and all below it; `source` is the program and its version, which stand at the foot of each.
fn write_pages(command: Command, section: Section, source: &str, folder: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_pages(below.clone(), section, source, folder)?;
    }
    Man::new(command).section(section.number()).source(source).generate_to(folder).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn every_command_but_hidden_ones_has_a_page() {
        let grape = Command::new("grape").about("Presses grapes");
        let press = Command::new("press").about("Presses fruit").subcommand(grape);
        let command = Command::new("cellar")
            .version("1.2")
            .about("Keeps wine")
            .subcommand(press)
            .subcommand(Command::new("secret").hide(true));
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);

        write(command, Section::Administration, folder.path()).unwrap();

        assert_eq!(files(&at("man")), ["cellar-press-grape.8", "cellar-press.8", "cellar.8"]);
        let page = fs::read_to_string(at("man/cellar-press.8")).unwrap();
        assert!(page.contains(".TH cellar-press 8  \"cellar 1.2\""), "{page}");
        assert!(page.contains("Presses fruit") && page.contains("cellar\\-press\\-grape(8)"), "{page}");
        assert_eq!(
            [files(&at("bash")), files(&at("zsh")), files(&at("fish"))].concat(),
            ["cellar", "_cellar", "cellar.fish"]
        );
    }
}
