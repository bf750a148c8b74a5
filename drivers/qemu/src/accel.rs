//! The accelerator: tried, never inferred.
//!
//! That a device opens says little: there are hosts on which it does and guests hang, or QEMU aborts
//! in early boot. So a kernel is booted once under the candidate, and the result is remembered for as
//! long as the host's kernel and its QEMU are the same.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::hold::try_lock;
use forge_driver::trial::{Ended, judge};
use forge_driver::{DriverHome, Error, KernelFiles, Kind, Result, atomic, process};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::host::{self, Arch, Os};
use crate::options::{AccelChoice, Config};

/// How long a kernel may take under a real accelerator until it finds no disk. It takes a second; one
/// nested in another machine, three.
const TRIAL_DEADLINE: Duration = Duration::from_secs(8);

/// How long one command waits for another's trial.
const WAIT_DEADLINE: Duration = Duration::from_secs(30);

const VERSION_DEADLINE: Duration = Duration::from_secs(20);
const FORMAT: u32 = 1;
const EMULATION: &str = "tcg";

/// The accelerator that machines get here, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Accel {
    /// QEMU's name for it.
    pub name: String,
    /// Why it is this one, for a reader.
    pub reason: String,
    /// A guest was booted under it, or under the one that was rejected, now or earlier.
    pub tried: bool,
}

impl Accel {
    fn emulation(reason: impl Into<String>, tried: bool) -> Self {
        Self {
            name: EMULATION.into(),
            reason: reason.into(),
            tried,
        }
    }
}

/// Decides on the accelerator. A trial boots `kernel`, or this host's own when there is none and it
/// can be read; without either, emulation is chosen, and nothing is remembered.
pub async fn accelerator(
    config: &Config,
    home: &DriverHome,
    kernel: Option<&KernelFiles>,
) -> Accel {
    let candidate = match wished(config.accel, host::OS) {
        Wish::Asked(name) => {
            return Accel {
                name: name.into(),
                reason: "asked for with `--qemu-accel`".into(),
                tried: false,
            };
        }
        Wish::None => {
            return Accel::emulation("QEMU has no other accelerator on this system", false);
        }
        Wish::Try(name) => name,
    };
    if let Some(why) = closed(candidate) {
        return Accel::emulation(why, false);
    }
    let wanted = match Setting::here(config, candidate).await {
        Ok(setting) => setting,
        Err(error) => {
            return Accel::emulation(
                format!("`{candidate}` could not be tried: {}", error.line()),
                false,
            );
        }
    };
    let file = home.dir.join("accelerator.json");
    if let Some(result) = recall(&file, &wanted) {
        return result.chosen();
    }
    let Some(kernel) = kernel
        .map(|files| files.kernel.clone())
        .or_else(host_kernel)
    else {
        return Accel::emulation(
            format!(
                "`{candidate}` is not tried yet: there is no kernel to try it with; `forge image build` makes one"
            ),
            false,
        );
    };
    match try_once(config, &file, wanted, &kernel).await {
        Ok(result) => result.chosen(),
        Err(error) => Accel::emulation(
            format!("`{candidate}` could not be tried: {}", error.line()),
            false,
        ),
    }
}

/// The CPU model that goes with an accelerator: the host's own where it runs natively. Under emulation
/// every feature that QEMU can emulate; what a guest does not use costs nothing.
pub(crate) fn cpu_model(accelerator: &str) -> &'static str {
    if accelerator == EMULATION {
        "max"
    } else {
        "host"
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Asked(&'static str),
    Try(&'static str),
    None,
}

fn wished(choice: AccelChoice, os: Os) -> Wish {
    match (choice, os) {
        (AccelChoice::Kvm, _) => Wish::Asked("kvm"),
        (AccelChoice::Hvf, _) => Wish::Asked("hvf"),
        (AccelChoice::Tcg, _) => Wish::Asked(EMULATION),
        (AccelChoice::Auto, Os::Linux) => Wish::Try("kvm"),
        (AccelChoice::Auto, Os::Mac) => Wish::Try("hvf"),
        (AccelChoice::Auto, Os::Other) => Wish::None,
    }
}

/// Why the candidate is out of reach of this user; not remembered, as it is seen at once.
fn closed(candidate: &str) -> Option<String> {
    if candidate != "kvm" {
        return None;
    }
    let error = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .err()?;
    Some(match error.kind() {
        std::io::ErrorKind::NotFound => "this host has no `/dev/kvm`".into(),
        std::io::ErrorKind::PermissionDenied => {
            "this user may not use `/dev/kvm`; add it to the group `kvm` and log in again".into()
        }
        _ => format!("`/dev/kvm` does not open: {error}"),
    })
}

/// What a result holds for: on another host, or after an upgrade, it is found out anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Setting {
    host: String,
    kernel: String,
    qemu: String,
    machine: String,
    candidate: String,
}

impl Setting {
    async fn here(config: &Config, candidate: &str) -> Result<Self> {
        let names = rustix::system::uname();
        Ok(Self {
            host: names.nodename().to_string_lossy().into_owned(),
            kernel: format!(
                "{} {}",
                names.release().to_string_lossy(),
                names.version().to_string_lossy()
            ),
            qemu: version(&config.binary).await?,
            machine: config.machine.clone(),
            candidate: candidate.into(),
        })
    }
}

/// The first line that the program says about itself.
pub(crate) async fn version(binary: &Path) -> Result<String> {
    let mut command = Command::new(binary);
    command.arg("--version");
    let output = process::run(command, None, VERSION_DEADLINE)
        .await?
        .success(&format!("`{} --version`", binary.display()))?;
    Ok(output
        .text()
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned())
}

/// `accelerator.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Tried {
    format: u32,
    setting: Setting,
    works: bool,
    reason: String,
}

impl Tried {
    fn chosen(&self) -> Accel {
        let candidate = &self.setting.candidate;
        if self.works {
            Accel {
                name: candidate.clone(),
                reason: self.reason.clone(),
                tried: true,
            }
        } else {
            Accel::emulation(
                format!("`{candidate}` does not work here: {}", self.reason),
                true,
            )
        }
    }
}

fn recall(file: &Path, wanted: &Setting) -> Option<Tried> {
    let tried: Tried = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    (tried.format == FORMAT && tried.setting == *wanted).then_some(tried)
}

/// Tries under a lock, so that commands that start together try once.
async fn try_once(config: &Config, file: &Path, setting: Setting, kernel: &Path) -> Result<Tried> {
    let _lock = wait_for(&file.with_extension("lock")).await?;
    if let Some(tried) = recall(file, &setting) {
        return Ok(tried);
    }
    let (works, reason) = boot(config, &setting.candidate, kernel).await?;
    let tried = Tried {
        format: FORMAT,
        setting,
        works,
        reason,
    };
    atomic::write_json(file, &tried, "the trial's result")?;
    Ok(tried)
}

async fn wait_for(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        atomic::private_folder(folder)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| atomic::full(error, &format!("failed to open `{}`", path.display())))?;
    let until = Instant::now() + WAIT_DEADLINE;
    while !try_lock(&file)? {
        if Instant::now() > until {
            return Err(Error::new(
                Kind::Timeout,
                "another command has been trying the accelerator for too long",
            ));
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(file)
}

/// Boots `kernel` without a disk: it has to come as far as finding none.
async fn boot(config: &Config, candidate: &str, kernel: &Path) -> Result<(bool, String)> {
    let folder = tempfile::tempdir()
        .map_err(|error| atomic::full(error, "failed to make a folder for the trial"))?;
    let serial = folder.path().join("serial");
    let mut command = Command::new(&config.binary);
    command
        .args([
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-m",
            "256M",
        ])
        .args([
            "-machine",
            &config.machine,
            "-accel",
            candidate,
            "-cpu",
            cpu_model(candidate),
        ])
        .args([
            "-append",
            &format!("console={} panic=-1", host::ARCH.serial()),
        ])
        .arg("-kernel")
        .arg(kernel)
        .arg("-serial")
        .arg(format!("file:{}", serial.display()));
    let ended = match process::run(command, None, TRIAL_DEADLINE).await {
        Ok(output) if output.status.success() => Ended::Well,
        Ok(output) => Ended::Badly(format!(
            "QEMU ended with {}: {}",
            output.status,
            process::tail(&output.tail(), 1)
        )),
        Err(error) if error.kind() == Kind::Timeout => Ended::Never,
        Err(error) => return Err(error),
    };
    let said = String::from_utf8_lossy(&fs::read(&serial).unwrap_or_default()).into_owned();
    Ok(judge(&said, &ended, TRIAL_DEADLINE))
}

/// This host's own kernel, where it is a file that this user may read.
fn host_kernel() -> Option<PathBuf> {
    if host::OS != Os::Linux || host::ARCH != Arch::X86_64 {
        return None;
    }
    let names = rustix::system::uname();
    let file = PathBuf::from(format!(
        "/boot/vmlinuz-{}",
        names.release().to_string_lossy()
    ));
    File::open(&file).is_ok().then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_follow_the_system_and_the_wish() {
        assert_eq!(wished(AccelChoice::Auto, Os::Linux), Wish::Try("kvm"));
        assert_eq!(wished(AccelChoice::Auto, Os::Mac), Wish::Try("hvf"));
        assert_eq!(wished(AccelChoice::Auto, Os::Other), Wish::None);
        assert_eq!(wished(AccelChoice::Tcg, Os::Mac), Wish::Asked("tcg"));
        assert_eq!(cpu_model("hvf"), "host");
        assert_eq!(cpu_model("tcg"), "max");
    }

    #[test]
    fn a_result_is_remembered_for_its_setting_only() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("accelerator.json");
        let setting = Setting {
            host: "h".into(),
            kernel: "6.1".into(),
            qemu: "QEMU emulator version 10.0.2".into(),
            machine: "q35".into(),
            candidate: "kvm".into(),
        };
        assert!(recall(&file, &setting).is_none());
        let tried = Tried {
            format: FORMAT,
            setting: setting.clone(),
            works: false,
            reason: "it hung".into(),
        };
        fs::write(&file, serde_json::to_vec(&tried).expect("text")).expect("write");
        let chosen = recall(&file, &setting).expect("remembered").chosen();
        assert_eq!((chosen.name.as_str(), chosen.tried), ("tcg", true));
        assert!(chosen.reason.contains("it hung"));
        let upgraded = Setting {
            qemu: "QEMU emulator version 11".into(),
            ..setting
        };
        assert!(recall(&file, &upgraded).is_none());
        fs::write(&file, "{").expect("write");
        assert!(
            recall(&file, &upgraded).is_none(),
            "a broken memory is no memory"
        );
    }
}
