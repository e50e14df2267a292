//! Which controller to talk to: flags before environment before the configuration file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::OsStringValueParser;
use clap::{Args, ValueHint};
use reqwest::Url;
use serde::Deserialize;

use crate::disk;
use crate::failure::Failure;

const MAX_CONFIG_BYTES: u64 = 64 * 1024;

/// The flags that name a controller.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Controller")]
pub(crate) struct Connection {
    /// Base URL of the controller, as https://muster.example:8443.
    #[arg(long, global = true, env = "MUSTER_URL", value_name = "URL")]
    url: Option<String>,
    /// Access token.
    #[arg(long, global = true, env = "MUSTER_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Certificate (PEM) of the CA that the controller's certificate must come from; the system's CAs otherwise.
    // Not a path to clap, which would refuse an empty variable; here that is an unset one.
    #[arg(long, global = true, env = "MUSTER_CA_FILE", value_name = "FILE",
        value_parser = OsStringValueParser::new(), value_hint = ValueHint::FilePath)]
    ca_file: Option<OsString>,
    /// Configuration file in TOML with url, token and ca-file [default: ~/.config/muster/config.toml].
    #[arg(long, global = true, env = "MUSTER_CONFIG", value_name = "FILE",
        value_parser = OsStringValueParser::new(), value_hint = ValueHint::FilePath)]
    config: Option<OsString>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct ConfigFile {
    url: Option<String>,
    token: Option<String>,
    ca_file: Option<PathBuf>,
}

/// How to reach a controller.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Base URL.
    pub(crate) url: Url,
    /// Access token.
    pub(crate) token: String,
    /// The only CA trusted; none for those of the system.
    pub(crate) ca_file: Option<PathBuf>,
}

fn default_config_path() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
    Some(folder.join("muster").join("config.toml"))
}

fn read_config(path: &Path) -> Result<ConfigFile, Failure> {
    let text = disk::read_text(path, MAX_CONFIG_BYTES)?;
    let mut config: ConfigFile =
        disk::parse_secret_toml(&text).map_err(|fault| Failure::input(format!("{}, {fault}", path.display())))?;
    // Relative to the file that says so, wherever the command is run.
    config.ca_file = config.ca_file.map(|file| path.parent().unwrap_or_else(|| Path::new("")).join(file));
    Ok(config)
}

fn parse_url(text: &str) -> Result<Url, Failure> {
    let url = Url::parse(text.trim())
        .map_err(|error| Failure::input(format!("{text:?} is not a URL: write https://host:port")).because(error))?;
    if url.scheme() != "https" || url.host_str().is_none() {
        return Err(Failure::input(format!(
            "{text:?} is not an https:// URL: the access token must not travel in the clear"
        )));
    }
    Ok(url)
}

impl Settings {
    /// Puts flags, environment and configuration file together.
    ///
    /// # Errors
    /// [`Failure`] when the file is wrong, or URL or token are nowhere.
    pub(crate) fn resolve(connection: &Connection) -> Result<Self, Failure> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let given_path = |path: &Option<OsString>| path.clone().filter(|path| !path.is_empty()).map(PathBuf::from);
        let (config, named) = match (given_path(&connection.config), default_config_path()) {
            (Some(path), _) => (read_config(&path)?, path.display().to_string()),
            (None, Some(path)) if path.exists() => (read_config(&path)?, path.display().to_string()),
            (None, path) => {
                let named = path.unwrap_or_else(|| "~/.config/muster/config.toml".into()).display().to_string();
                (ConfigFile::default(), named)
            }
        };
        let missing = |what: &str, flag: &str, variable: &str, key: &str| {
            Failure::input(format!("no {what}: give {flag}, set {variable}, or write {key} = \"...\" to {named}"))
        };
        let url =
            given(&connection.url).or(config.url).ok_or_else(|| missing("controller", "--url", "MUSTER_URL", "url"))?;
        let token = given(&connection.token)
            .or(config.token)
            .ok_or_else(|| missing("access token", "--token", "MUSTER_TOKEN", "token"))?;
        let token = token.trim().to_owned();
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Failure::input("the access token holds characters that no token has"));
        }
        Ok(Self { url: parse_url(&url)?, token, ca_file: given_path(&connection.ca_file).or(config.ca_file) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::damage;

    const SECRET: &str = "correct-horse-battery-staple";

    fn config() -> String {
        format!("# Mine.\nurl = \"https://muster.example:8443\"\ntoken = \"{SECRET}\"\nca-file = \"ca.pem\"\n")
    }

    fn connection(config: &Path, url: Option<&str>) -> Connection {
        Connection { url: url.map(Into::into), token: None, ca_file: None, config: Some(config.into()) }
    }

    #[test]
    fn flags_win_over_the_file_and_paths_are_relative_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "url = \"https://a:1\"\ntoken = \"t\\n\"\nca-file = \"ca.pem\"\n").unwrap();
        let settings = Settings::resolve(&connection(&path, None)).unwrap();
        assert_eq!((settings.url.as_str(), settings.token.as_str()), ("https://a:1/", "t"));
        assert_eq!(settings.ca_file, Some(folder.path().join("ca.pem")));
        let settings = Settings::resolve(&connection(&path, Some("https://b:2/base"))).unwrap();
        assert_eq!(settings.url.as_str(), "https://b:2/base");
        // An empty variable is an unset one.
        assert_eq!(Settings::resolve(&connection(&path, Some(""))).unwrap().url.as_str(), "https://a:1/");
    }

    #[test]
    fn mistakes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let refuse = |text: &str, url: Option<&str>| {
            std::fs::write(&path, text).unwrap();
            let failure = Settings::resolve(&connection(&path, url)).unwrap_err();
            assert_eq!(failure.exit_code(), 2);
            failure.to_string()
        };
        assert!(refuse("", None).contains("MUSTER_URL"));
        assert!(refuse("url = \"https://a\"", None).contains("MUSTER_TOKEN"));
        assert!(refuse("\nurl = 3", None).contains("line 2"));
        assert!(refuse("color = 3", None).contains("unknown field `color`"));
        assert!(refuse("token = \"t\"", Some("http://a")).contains("in the clear"));
        assert!(refuse("token = \"t\"", Some("a b")).contains("not a URL"));
        assert!(refuse("token = \"a b\"\nurl = \"https://a\"", None).contains("characters"));
    }

    #[test]
    fn the_line_that_holds_the_token_is_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        for line in [
            format!("token = \"{SECRET}"),
            format!("token = {SECRET}\""),
            format!("token = \"{SECRET}\" x"),
            format!("token = [\"{SECRET}\"]"),
            format!("token \"{SECRET}\""),
        ] {
            std::fs::write(&path, format!("url = \"https://a\"\n{line}\n")).unwrap();
            let failure = read_config(&path).unwrap_err();
            assert!(failure.to_string().contains("config.toml, line 2"), "{failure}");
            assert!(!failure.chain().contains("horse"), "{failure}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_url_or_refused(text in prop_oneof![".{0,40}", "https?://[a-z:@/\\[\\]?#%.]{0,20}"]) {
            match parse_url(&text) {
                Ok(url) => prop_assert!(url.scheme() == "https" && url.host_str().is_some_and(|host| !host.is_empty())),
                Err(failure) => prop_assert_eq!(failure.exit_code(), 2),
            }
        }

        #[test]
        fn any_bytes_are_a_configuration_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.toml");
            std::fs::write(&path, bytes).unwrap();
            if let Err(failure) = read_config(&path) {
                prop_assert!(failure.exit_code() == 2 && failure.to_string().contains("config.toml"));
            }
        }

        #[test]
        fn a_damaged_configuration_is_refused_without_a_word_of_its_token(text in damage::text(config())) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.toml");
            std::fs::write(&path, text).unwrap();
            if let Err(failure) = Settings::resolve(&connection(&path, None)) {
                prop_assert_eq!(failure.exit_code(), 2);
                prop_assert!(!failure.chain().contains("horse"), "{}", failure.chain());
            }
        }
    }
}
