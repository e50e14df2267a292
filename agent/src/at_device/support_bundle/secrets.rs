//! Cuts out of a text what must not leave the device: tokens by their form and by the setting that holds one, private keys, and passwords
//! in addresses. A text that is no longer quite right is better than one that gives something away.

/// What stands in its place.
const CUT: &str = "[cut out]";
/// How every enrolment token begins.
const TOKEN: &str = "muster1.";

/// `text` without secrets.
pub(super) fn without_secrets(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut until: Option<&str> = None;
    for line in text.split_inclusive('\n') {
        if let Some(end) = until {
            if line.contains(end) {
                until = None;
            }
            continue;
        }
        if let Some(at) = line.find("-----BEGIN ").filter(|_| line.contains("PRIVATE KEY")) {
            out.push_str(&line[..at]);
            out.push_str(CUT);
            out.push('\n');
            // All of it may stand in one line, as in JSON.
            until = (!line.contains("-----END ")).then_some("-----END ");
            continue;
        }
        if let Some((name, value)) = setting(line) {
            out.push_str(name);
            out.push_str(CUT);
            out.push('\n');
            let quotes = ["\"\"\"", "'''"].into_iter().find(|quotes| value.trim_start().starts_with(quotes));
            until = quotes.filter(|quotes| value.matches(quotes).count() < 2);
            continue;
        }
        out.push_str(&without_passwords(&without_tokens(line)));
    }
    out
}

/// The part of a line up to the value of a setting that is secret, and that value. Messages about a faulty file repeat its lines, with
/// something before them, so it need not be at the beginning.
fn setting(line: &str) -> Option<(&str, &str)> {
    let at = line.match_indices("enrolment-token").find_map(|(at, name)| {
        let rest = line[at + name.len()..].trim_start_matches(['"', '\'']);
        rest.trim_start().starts_with('=').then_some(line.len() - rest.len())
    })?;
    let equals = at + line[at..].find('=')? + 1;
    Some(line.split_at(equals))
}

fn without_tokens(line: &str) -> String {
    let mut parts = line.split(TOKEN);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(CUT);
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "-_.=+/".contains(c)));
    }
    out
}

/// Addresses may hold a user and a password before their host.
fn without_passwords(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/\"'<>,".contains(c)).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(at) => {
                out.push_str(CUT);
                &after[at..]
            }
            None => after,
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_cut_out_and_the_rest_stays() {
        for (text, expected) in [
            ("line = \"3\"\n# a comment\n", "line = \"3\"\n# a comment\n"),
            ("enrolment-token = \"x\"\nnext = 1\n", "enrolment-token =[cut out]\nnext = 1\n"),
            ("\"enrolment-token\" = \"x\"\n", "\"enrolment-token\" =[cut out]\n"),
            ("#enrolment-token=x\n", "#enrolment-token=[cut out]\n"),
            ("1 | enrolment-token = \"x\n", "1 | enrolment-token =[cut out]\n"),
            ("enrolment-token = \"\"\"\nx\n\"\"\"\nnext = 1\n", "enrolment-token =[cut out]\nnext = 1\n"),
            ("enrolment-token-file = \"/etc/token\"\n", "enrolment-token-file = \"/etc/token\"\n"),
            ("said \"muster1.aB_9-.x=\", and", "said \"[cut out]\", and"),
            ("url https://user:pass@hub:1/x\n", "url https://[cut out]@hub:1/x\n"),
            ("http://a http://b:c@d", "http://a http://[cut out]@d"),
            ("a\n-----BEGIN EC PRIVATE KEY-----\nx\n-----END EC PRIVATE KEY-----\nb\n", "a\n[cut out]\nb\n"),
            ("-----BEGIN CERTIFICATE-----\nx\n", "-----BEGIN CERTIFICATE-----\nx\n"),
        ] {
            assert_eq!(without_secrets(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_token_never_stays_whatever_is_around_it(before in ".{0,40}", after in "[ \n\"'].{0,40}", secret in "[a-zA-Z0-9_-]{12,40}") {
            let out = without_secrets(&format!("{before}muster1.{secret}{after}"));
            prop_assert!(!out.contains(&format!("muster1.{secret}")), "{}", out);
            let set = without_secrets(&format!("{}\nenrolment-token = {secret}{after}", before.replace('\n', " ")));
            prop_assert!(!set.contains(&format!("= {secret}")), "{}", set);
        }

        #[test]
        fn any_text_can_be_gone_through(text in "(enrolment-token|muster1\\.|://|@|=|\"\"\"|-----BEGIN PRIVATE KEY|-----END |\n|.){0,30}") {
            without_secrets(&text);
        }
    }
}
