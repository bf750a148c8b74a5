//! What images are built with. The one list of those tools and of the packages that hold them.

use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use forge_driver::{Kind, process};
use tokio::process::Command;

use super::{Entry, program};

const AREA: &str = "image build";
const DEADLINE: Duration = Duration::from_secs(20);

/// Something that has to be there: a program, or a file when the name is a path.
struct Tool {
    name: &'static str,
    package: &'static str,
    purpose: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool {
        name: "mmdebstrap",
        package: "mmdebstrap",
        purpose: "unpacks and configures Debian",
    },
    Tool {
        name: "/usr/share/keyrings/debian-archive-keyring.gpg",
        package: "debian-archive-keyring",
        purpose: "the keys that Debian's packages are checked with",
    },
    Tool {
        name: "sfdisk",
        package: "fdisk",
        purpose: "writes the partition table",
    },
    Tool {
        name: "mformat",
        package: "mtools",
        purpose: "makes the partition of the firmware",
    },
    Tool {
        name: "grub-mkimage",
        package: "grub-common",
        purpose: "makes the bootloader",
    },
    Tool {
        name: "/usr/lib/grub/i386-pc/boot.img",
        package: "grub-pc-bin",
        purpose: "the bootloader for BIOS",
    },
    Tool {
        name: "/usr/lib/grub/x86_64-efi/moddep.lst",
        package: "grub-efi-amd64-bin",
        purpose: "the bootloader for UEFI",
    },
    Tool {
        name: "qemu-img",
        package: "qemu-utils",
        purpose: "makes disks",
    },
    Tool {
        name: "mount",
        package: "mount",
        purpose: "mounts /proc while packages are configured",
    },
];

/// The name spaces that an image is built in: as root those of mounts and processes, else one of users
/// besides, with the subordinate ids of the user in it.
fn unshare() -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user", "--map-auto"]);
    }
    command.args(["--mount", "--pid", "--fork", "--kill-child"]);
    command
}

/// Looks for the tools and tries what only a try can tell.
pub async fn findings() -> Vec<Entry> {
    if env::consts::OS != "linux" || env::consts::ARCH != "x86_64" {
        return vec![Entry::new(
            AREA,
            "tools",
            true,
            "images are built on Linux x86_64; here `forge image pull` fetches one",
        )];
    }
    let mut findings: Vec<Entry> = TOOLS.iter().map(tool).collect();
    findings.push(file_system().await);
    findings.push(namespaces().await);
    findings
}

fn tool(tool: &Tool) -> Entry {
    let found = if tool.name.starts_with('/') {
        Path::new(tool.name).exists().then(|| tool.name.into())
    } else {
        program(tool.name)
    };
    match found {
        Some(path) => Entry::new(AREA, tool.name, true, path.display().to_string()),
        None => Entry::new(AREA, tool.name, false, tool.purpose).packages(&[tool.package]),
    }
}

/// Makes a file system the way an image does; e2fsprogs before 1.47 refuses.
async fn file_system() -> Entry {
    const WHAT: &str = "mke2fs";
    let Some(mke2fs) = program(WHAT) else {
        return Entry::new(AREA, WHAT, false, "makes the root file system")
            .packages(&["e2fsprogs"]);
    };
    let tried = async {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).map_err(|error| error.to_string())?;
        let mut command = Command::new(&mke2fs);
        command
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-E",
                "offset=1048576,root_owner=0:0,assume_storage_prezeroed=1",
                "-d",
            ])
            .arg(&tree)
            .arg(folder.path().join("disk"))
            .arg("4096k");
        let output = process::run(command, None, DEADLINE)
            .await
            .map_err(|error| error.line())?;
        if output.status.success() {
            Ok(())
        } else {
            Err(output.tail())
        }
    };
    match tried.await {
        Ok(()) => Entry::new(AREA, WHAT, true, mke2fs.display().to_string()),
        Err(why) => Entry::new(
            AREA,
            WHAT,
            false,
            format!("cannot make the root file system: {why}"),
        )
        .remedy("install e2fsprogs 1.47 or newer"),
    }
}

/// Enters the name spaces and leaves them again.
async fn namespaces() -> Entry {
    const WHAT: &str = "name spaces";
    let root = rustix::process::geteuid().is_root();
    if !root && program("newuidmap").is_none() {
        return Entry::new(
            AREA,
            WHAT,
            false,
            "`newuidmap` is missing: lends a plain user the ids that an image needs",
        )
        .packages(&["uidmap"]);
    }
    let mut command = unshare();
    // Giving a file to an id inside fails when only one id is mapped.
    command.args(["sh", "-c", "mount -t proc proc /proc && file=$(mktemp) && chown 33:33 \"$file\"; code=$?; rm -f \"$file\"; exit $code"]);
    match process::run(command, None, DEADLINE).await {
        Ok(output) if output.status.success() => Entry::new(
            AREA,
            WHAT,
            true,
            if root {
                "tried, as root"
            } else {
                "tried, as a plain user with subordinate ids"
            },
        ),
        Ok(output) => amiss(WHAT, root, &output.tail()),
        Err(error) if error.kind() == Kind::Unavailable => {
            Entry::new(AREA, WHAT, false, error.line()).packages(&["util-linux"])
        }
        Err(error) => amiss(WHAT, root, &error.line()),
    }
}

fn amiss(what: &str, root: bool, why: &str) -> Entry {
    let entry = Entry::new(AREA, what, false, format!("cannot be entered: {why}"));
    if root {
        return entry.remedy("this container lacks CAP_SYS_ADMIN: start it with that capability, or use `forge image pull`");
    }
    let user = user();
    if let Some(user) = &user
        && let Some(command) = lend(user, &read("/etc/subuid"), &read("/etc/subgid"))
    {
        return entry.remedy(format!("as root, run `{}`", command.join(" ")));
    }
    if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").trim() == "1" {
        return entry.remedy("AppArmor keeps plain users out of name spaces: as root, run `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or build as root");
    }
    if read("/proc/sys/kernel/unprivileged_userns_clone").trim() == "0" {
        return entry.remedy("as root, run `sysctl kernel.unprivileged_userns_clone=1`");
    }
    entry.remedy("build the image as root, or use `forge image pull`")
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The name of the user who runs this.
fn user() -> Option<String> {
    let me = rustix::process::geteuid().as_raw().to_string();
    read("/etc/passwd").lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == me).then(|| name.to_owned())
    })
}

/// The command that lends this user subordinate ids, when none are lent.
pub fn subordinate_ids() -> Option<Vec<String>> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    lend(&user()?, &read("/etc/subuid"), &read("/etc/subgid"))
}

/// `usermod` with the first range of 65,536 ids that is nobody's (subuid(5): `name:first:count`).
fn lend(user: &str, subuid: &str, subgid: &str) -> Option<Vec<String>> {
    let ranges = |text: &str| -> Vec<(String, u64, u64)> {
        text.lines()
            .filter_map(|line| {
                let mut fields = line.split(':');
                Some((
                    fields.next()?.to_owned(),
                    fields.next()?.trim().parse().ok()?,
                    fields.next()?.trim().parse().ok()?,
                ))
            })
            .collect()
    };
    let (uids, gids) = (ranges(subuid), ranges(subgid));
    let lacks = |ranges: &[(String, u64, u64)]| {
        !ranges
            .iter()
            .any(|(name, _, count)| name == user && *count >= 65_536)
    };
    if !lacks(&uids) && !lacks(&gids) {
        return None;
    }
    let first = uids
        .iter()
        .chain(&gids)
        .map(|(_, first, count)| first.saturating_add(*count))
        .max()
        .unwrap_or(0)
        .max(100_000);
    let range = format!("{first}-{}", first.saturating_add(65_535));
    let mut command = vec!["usermod".to_owned()];
    if lacks(&uids) {
        command.extend(["--add-subuids".to_owned(), range.clone()]);
    }
    if lacks(&gids) {
        command.extend(["--add-subgids".to_owned(), range]);
    }
    command.push(user.to_owned());
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_names_its_package() {
        let missing = tool(&Tool {
            name: "no-such-program",
            package: "some-package",
            purpose: "does it",
        });
        assert_eq!(missing.finding.packages, ["some-package"]);
        assert_eq!(missing.finding.detail, "does it");
        assert!(
            tool(&Tool {
                name: "/dev/null",
                package: "x",
                purpose: ""
            })
            .finding
            .ok
        );
    }

    #[test]
    fn ids_are_lent_once_and_never_those_of_others() {
        assert_eq!(lend("me", "me:100000:65536\n", "me:100000:65536\n"), None);
        let command = lend(
            "me",
            "you:100000:65536\n",
            "you:100000:65536\nme:165536:65536\n",
        )
        .expect("lends");
        assert_eq!(command.join(" "), "usermod --add-subuids 231072-296607 me");
        let command = lend("me", "", "").expect("lends");
        assert_eq!(
            command.join(" "),
            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 me"
        );
    }

    #[test]
    fn a_range_that_is_too_small_does_not_count() {
        assert!(lend("me", "me:100000:1000\n", "me:100000:65536\n").is_some());
    }

    #[test]
    fn every_tool_says_what_it_is_for() {
        for tool in TOOLS {
            assert!(
                !tool.purpose.is_empty() && !tool.package.is_empty(),
                "{}",
                tool.name
            );
        }
    }
}
