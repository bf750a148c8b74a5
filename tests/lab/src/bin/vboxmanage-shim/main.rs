//! Stands before the real VBoxManage where VirtualBox has no kernel module: every call goes to the real
//! one unchanged, but for those that need a running machine. Those are answered from QEMU, which boots what
//! the real VBoxManage says that the machine is.
//!
//! `tests/lab/with-virtualbox` puts it into place; `tests/README.md` says what is real and what is not.

mod answer;
mod boot;
mod control;
mod dhcp;
mod disks;
mod guard;
mod hostonly;
mod machine;
mod network;
mod qemu;
mod qmp;
mod real;
mod supervise;
mod vm;

use std::ffi::OsString;
use std::process::ExitCode;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(&words) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("VBoxManage: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the words of a call come to: its exit code.
fn run(words: &[OsString]) -> Result<u8> {
    let all: Vec<String> = words
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let mut rest: Vec<&str> = all.iter().map(String::as_str).collect();
    while let Some(&("-q" | "--nologo")) = rest.first() {
        rest.remove(0);
    }
    match rest.as_slice() {
        ["--supervise", folder] => supervise::run(folder.as_ref()),
        ["startvm", given @ ..] => boot::start(given),
        ["controlvm", machine, action @ ..] => control::control(words, machine, action),
        ["showvminfo", ..] => answer::showvminfo(words),
        ["list", "runningvms"] => answer::runningvms(),
        ["list", .., "runningvms"] => Err("the lab lists running machines without details".into()),
        ["hostonlyif", "create"] => hostonly::create(),
        ["hostonlyif", "remove", name] => hostonly::remove(name),
        ["dhcpserver", action, given @ ..] => dhcp::serve(words, action, given),
        ["unregistervm", machine, given @ ..] => guard::unregister(words, machine, given),
        ["storageattach", machine, given @ ..] => guard::attach(words, machine, given),
        [
            "modifyvm" | "storagectl" | "clonevm" | "movevm" | "snapshot",
            machine,
            ..,
        ] => guard::modify(words, machine),
        ["modifymedium", given @ ..] => guard::medium(words, given),
        ["closemedium", given @ ..] => guard::close(words, given),
        _ => real::exec(words),
    }
}
