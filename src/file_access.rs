//! The users of a machine who can read or replace a file of the service.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const READABLE_BY_ALL: u32 = 0o004;
const WRITABLE_BY_ALL: u32 = 0o002;
const WRITABLE_BY_GROUP: u32 = 0o020;
/// In a folder with this bit, only its owner replaces a file.
const STICKY: u32 = 0o1000;

/// The content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// A secret, which only the owner may read.
    Secret,
    /// A certificate, or a configuration without a secret.
    Public,
}

impl Content {
    /// The command that takes the access of others away.
    pub(crate) const fn remedy(self) -> &'static str {
        match self {
            Self::Secret => "chmod 600",
            Self::Public => "chmod go-w",
        }
    }
}

/// The access of others than the owner to a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    /// Every user of the machine can write it.
    pub(crate) all_write: bool,
    all_read: bool,
    group_writes: bool,
    /// Every user can put another file in its place.
    all_replace: bool,
}

impl Access {
    /// A file that is missing is reported when it is read.
    pub(crate) fn of(path: &Path) -> Self {
        let mode =
            |path: &Path| std::fs::metadata(path).map_or(0, |found| found.permissions().mode());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let of_file = mode(path);
        let of_folder = mode(folder.unwrap_or(Path::new(".")));
        Self {
            all_write: of_file & WRITABLE_BY_ALL != 0,
            all_read: of_file & READABLE_BY_ALL != 0,
            group_writes: of_file & WRITABLE_BY_GROUP != 0,
            all_replace: of_folder & WRITABLE_BY_ALL != 0 && of_folder & STICKY == 0,
        }
    }

    /// Each weakness with its remedy, to be written after the name of the file.
    pub(crate) fn weaknesses(self, content: Content) -> Vec<&'static str> {
        let reads = self.all_read && content == Content::Secret;
        let found = [
            (reads, "which every user can read; run chmod 600 on it"),
            (self.group_writes, "which its group can write; run chmod g-w on it"),
            (self.all_replace, "whose folder every user can write; run chmod go-w on the folder"),
        ];
        found.into_iter().filter_map(|(is_weak, text)| is_weak.then_some(text)).collect()
    }
}
