//! The way to the daemon of another host.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use forge_driver::{DriverHome, Result, atomic};

/// The program that libvirt runs in place of `ssh`: it goes to hosts whose key is known already, and to no
/// other, whatever the user's configuration says.
///
/// libvirt runs the program that the URI's parameter `command` names, with words that it makes itself
/// (<https://libvirt.org/uri.html#ssh-transport>); of the parameters about host keys, `no_verify` only switches
/// the check off, and `known_hosts` is for its other SSH libraries. To `ssh` the first value of an option counts
/// (ssh(1)), and those of a command line come before those of files, so a script that puts its options first is
/// all that it takes. Rejected: asking `ssh` once before, whose answer says nothing of the connections after it.
///
/// One connection serves the calls of a command, and of those that follow within seconds: a key exchange for
/// each call would cost more than the calls do. The connection of somebody else, which may have been made
/// without a check, is not used.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn program(home: &DriverHome) -> Result<PathBuf> {
    let path = home.dir.join("ssh");
    let sockets = home.runtime.to_string_lossy().replace('\'', "'\\''");
    let script = format!(
        "#!/bin/sh\n\
         exec ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o VerifyHostKeyDNS=no -o UpdateHostKeys=no \
         -o NoHostAuthenticationForLocalhost=no -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=2 \
         -o ClearAllForwardings=yes -o ForwardAgent=no -o ForwardX11=no -o PermitLocalCommand=no -o RemoteCommand=none -o RequestTTY=no \
         -o ControlMaster=auto -o ControlPath='{sockets}'/%C -o ControlPersist=5 \"$@\"\n"
    );
    let same = std::fs::read(&path).is_ok_and(|text| text == script.as_bytes())
        && std::fs::metadata(&path).is_ok_and(|file| file.permissions().mode() & 0o777 == 0o700);
    if !same {
        atomic::private_folder(&home.dir)?;
        atomic::private_folder(&home.runtime)?;
        atomic::write(&path, script.as_bytes(), 0o700)?;
    }
    Ok(path)
}

/// A path as a value in a URI (RFC 3986, 2.3: what needs no escape).
pub(crate) fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_checks_the_key_before_anything_that_follows() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = DriverHome {
            dir: folder.path().join("d'r iver"),
            store: folder.path().to_owned(),
            owner: uuid::Uuid::nil(),
            runtime: folder.path().join("it's"),
            assets: forge_driver::assets::Assets::default(),
            token: forge_driver::Token::default(),
        };
        std::fs::create_dir(&home.dir).expect("mkdir");
        let path = program(&home).expect("written");
        let text = std::fs::read_to_string(&path).expect("the script");
        let check = text.find("StrictHostKeyChecking=yes").expect("checked");
        assert!(check < text.find("\"$@\"").expect("libvirt's words"));
        // What the shell makes of it, with a program in place of ssh.
        // Nothing is run that was written a moment ago: a child of another test may still have it open.
        std::os::unix::fs::symlink("/bin/echo", folder.path().join("ssh")).expect("a link");
        let path_of = format!(
            "{}:{}",
            folder.path().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let ran = std::process::Command::new("sh")
            .arg(program(&home).expect("there already"))
            .args([
                "-T",
                "-o",
                "StrictHostKeyChecking=no",
                "--",
                "h",
                "sh -c 'x'",
            ])
            .env("PATH", path_of)
            .output()
            .expect("runs");
        let said = String::from_utf8(ran.stdout).expect("text");
        assert!(said.trim_end().ends_with("-- h sh -c 'x'"), "{said}");
        let socket = format!("ControlPath={}/%C ", home.runtime.display());
        assert!(said.contains(&socket), "{said}");
    }

    #[test]
    fn a_path_survives_a_uri() {
        assert_eq!(escaped("/a b/c&d?e"), "/a%20b/c%26d%3Fe");
        assert_eq!(escaped("/x/ü"), "/x/%C3%BC");
    }
}
