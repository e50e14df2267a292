//! Users and groups of this device, as its own files list them: the agent's are made by its package, and no directory service is asked.

use std::path::Path;

use crate::files;

/// Larger than any list of accounts of a device.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// A user and its first group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    /// The user.
    pub(crate) user: u32,
    /// Its group.
    pub(crate) group: u32,
}

/// The user `name` of `/etc/passwd`; none where there is none, or the file cannot be read.
pub(crate) fn user(name: &str) -> Option<Account> {
    entry(&read("/etc/passwd"), name)
}

/// The number of the group `name` of `/etc/group`; none where there is none, or the file cannot be read.
pub(crate) fn group(name: &str) -> Option<u32> {
    number(&read("/etc/group"), name)
}

fn read(path: &str) -> String {
    let bytes = files::read_start(Path::new(path), MAX_FILE_BYTES).ok().flatten().unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn fields<'a>(text: &'a str, name: &str) -> Option<Vec<&'a str>> {
    text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields.first() == Some(&name))
}

/// `name:password:user:group:...`.
fn entry(text: &str, name: &str) -> Option<Account> {
    let fields = fields(text, name)?;
    Some(Account { user: fields.get(2)?.parse().ok()?, group: fields.get(3)?.parse().ok()? })
}

/// `name:password:group:...`.
fn number(text: &str, name: &str) -> Option<u32> {
    fields(text, name)?.get(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_their_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nmuster-agent-2:x:7:7::/:/x\nmuster-agent:x:995:994::/:/usr/sbin/nologin\nbad:x:y:z\n";
        assert_eq!(entry(passwd, "muster-agent"), Some(Account { user: 995, group: 994 }));
        assert_eq!((entry(passwd, "muster"), entry(passwd, "bad"), entry("", "root")), (None, None, None));
        assert_eq!(number("adm:x:4:\nmuster-clients:x:990:camera\n", "muster-clients"), Some(990));
        assert_eq!(user("root"), Some(Account { user: 0, group: 0 }));
    }
}
