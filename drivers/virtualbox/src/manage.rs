//! `VBoxManage`, the way to VirtualBox
//! (<https://docs.oracle.com/en/virtualization/virtualbox/7.2/user/vboxmanage.html>).

use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::hold::{self, Work};
use forge_driver::process::Output;
use forge_driver::{Error, Kind, Result, atomic, process};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::sleep;

/// How long one command may take. The first one starts VirtualBox's service.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long a machine may take to start: its process has to reserve its memory.
const START: Duration = Duration::from_secs(120);

/// How long a command waits for its turn: several that start machines may be before it.
const GATE: Duration = Duration::from_secs(600);

/// The oldest VirtualBox whose commands are those that forge uses.
pub(crate) const OLDEST: Version = Version(6, 1, 0);

/// The first one that forge was never tried with.
pub(crate) const UNKNOWN: Version = Version(7, 3, 0);

/// One command at a time: two that start VirtualBox's service at once hinder each other, and it was seen to hang when
/// two machines got their disks at the same moment. Within this process the turn is this lock's, among all of a user
/// one of the file system's.
static TURN: Mutex<()> = Mutex::const_new(());

/// What VBoxManage says when it could not reach the service, and did nothing.
const UNREACHED: &str = "Failed to create the VirtualBox object";

/// How often the service is tried to be reached: one that ends does not answer, and the next one starts then.
const TRIES: u32 = 4;

/// How long after each try.
const PAUSE: Duration = Duration::from_secs(1);

/// What begins each line of an error.
const PREFIX: &str = "VBoxManage: error: ";

/// A version of VirtualBox: the numbers between the dots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// One VBoxManage program.
#[derive(Clone, Debug)]
pub(crate) struct Manage {
    program: PathBuf,
    /// Where one command of a user at a time has its turn.
    gate: PathBuf,
}

impl Manage {
    /// The program, and the runtime folder of the store, which lies in one that is the user's.
    pub(crate) fn new(program: &Path, runtime: &Path) -> Self {
        Self {
            program: program.to_owned(),
            gate: runtime.parent().unwrap_or(runtime).to_owned(),
        }
    }

    /// What one command prints on its standard output; warnings on the other stream are no errors.
    ///
    /// # Errors
    /// What VirtualBox said, with a kind that can be acted on.
    pub(crate) async fn call(&self, words: &[&str]) -> Result<String> {
        answered(words, self.run(words, DEADLINE).await?)
    }

    /// Starts a machine.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(crate) async fn start(&self, id: &str, ui: &str) -> Result<()> {
        let words = ["startvm", id, "--type", ui];
        answered(&words, self.run(&words, START).await?).map(drop)
    }

    /// The version, and the whole word that tells it.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when the program is missing, [`Kind::Invalid`] when what it says is no version.
    pub(crate) async fn version(&self) -> Result<(Version, String)> {
        let text = self.call(&["--version"]).await?;
        let word = text.lines().last().unwrap_or_default().trim();
        parse_version(word)
            .map(|version| (version, word.to_owned()))
            .ok_or_else(|| garbled(&["--version"], &text))
    }

    /// Runs one command, in its turn.
    async fn run(&self, words: &[&str], deadline: Duration) -> Result<Output> {
        let program = process::which(&self.program).ok_or_else(|| missing(&self.program))?;
        let _turn = TURN.lock().await;
        atomic::private_folder(&self.gate)?;
        let one = hold::work_within(&self.gate, GATE).await.map_err(|error| {
            error.hint("a `VBoxManage` of another command may hang (`pgrep -l VBoxManage`): end it, then run the same command again")
        })?;
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let output = once(&program, words, one.as_ref(), deadline).await?;
            let reached = output.status.success()
                || !String::from_utf8_lossy(&output.stderr).contains(UNREACHED);
            if reached || tries == 0 {
                return Ok(output);
            }
            sleep(PAUSE).await;
        }
    }
}

/// Runs one command. Its turn lasts until it ends, also when forge is killed: the next command then finds what it did. It
/// inherits nothing itself, because VirtualBox's service and its machines live on.
async fn once(
    program: &Path,
    words: &[&str],
    turn: Option<&Work>,
    deadline: Duration,
) -> Result<Output> {
    let settings = |command: &mut Command| {
        // English, and paths as they are.
        command.env("LC_ALL", "C.UTF-8").env_remove("LANGUAGE");
    };
    let done = match turn {
        Some(turn) => {
            process::run_holding(program, words, turn.shared()?, settings, deadline).await
        }
        None => Err(Error::new(
            Kind::Io,
            "the folder of forge's runtime files was removed",
        )),
    };
    done.map_err(|error| {
        let what = format!("`VBoxManage {}`", words.first().copied().unwrap_or_default());
        match error.kind() {
            Kind::Timeout => Error::new(
                Kind::Timeout,
                format!("{what} did not end within {} s", deadline.as_secs()),
            )
            .hint("VirtualBox's service may hang: end `VBoxSVC` when no machine runs, then run the same command again"),
            _ => error.context(format!("failed to run {what}")),
        }
    })
}

/// The error for a VBoxManage that cannot be run.
pub(crate) fn missing(program: &Path) -> Error {
    let (what, hint) = if program.is_file() {
        (
            "cannot be executed",
            "make it executable, or name another one with `--virtualbox-vboxmanage`",
        )
    } else {
        (
            "which speaks to VirtualBox, is not installed",
            "`forge doctor --driver virtualbox` shows what is missing; `--virtualbox-vboxmanage` names one elsewhere",
        )
    };
    let name = program.display();
    let comma = if program.is_file() { "" } else { "," };
    Error::new(Kind::Unavailable, format!("`{name}`{comma} {what}")).hint(hint)
}

/// A path as a word for VBoxManage.
///
/// # Errors
/// [`Kind::Invalid`] when it is not UTF-8, which VirtualBox cannot keep.
pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::new(
            Kind::Invalid,
            format!("VirtualBox cannot keep the path `{}`", path.display()),
        )
        .because("it is not UTF-8")
        .hint("set FORGE_HOME to a folder with a plain name")
    })
}

/// An answer that cannot be understood.
pub(crate) fn garbled(words: &[&str], said: &str) -> Error {
    Error::new(
        Kind::Invalid,
        format!(
            "`VBoxManage {}` answered what forge does not understand",
            words.join(" ")
        ),
    )
    .because(match process::tail(said, 3) {
        tail if tail.is_empty() => "it said nothing".to_owned(),
        tail => tail,
    })
    .hint("is that VirtualBox's own VBoxManage? `forge doctor --driver virtualbox` shows which one is used")
}

fn answered(words: &[&str], output: Output) -> Result<String> {
    if output.status.success() {
        return Ok(without_warning(&output.text()).to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(understood(words, &said, &output.status.to_string()))
}

/// What comes after the warning that Debian's VBoxManage begins its answers with when the kernel module is absent:
/// a line that says so, and lines that are set in.
fn without_warning(text: &str) -> &str {
    let mut rest = text;
    while let Some((line, after)) = rest.split_once('\n') {
        let warns = line.starts_with("WARNING:");
        let set_in = rest.len() < text.len() && (line.is_empty() || line.starts_with(['\t', ' ']));
        if !warns && !set_in {
            break;
        }
        rest = after;
    }
    rest
}

/// The error behind what VBoxManage said: the kind follows from the code of VirtualBox's interface
/// (<https://www.virtualbox.org/sdkref/>, result codes), which is no prose.
fn understood(words: &[&str], said: &str, status: &str) -> Error {
    let lines: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix(PREFIX))
        .collect();
    let code = lines
        .iter()
        // Where VirtualBox has no more to tell than the code, it begins otherwise.
        .find_map(|line| {
            line.strip_prefix("Details: code ")
                .or_else(|| line.strip_prefix("Code "))
        })
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or_default();
    let reasons: Vec<&str> = lines
        .iter()
        .filter(|line| !line.starts_with("Details:") && !line.starts_with("Context:"))
        .copied()
        .collect();
    let kind = match code {
        "VBOX_E_OBJECT_NOT_FOUND" => Kind::NotFound,
        "VBOX_E_OBJECT_IN_USE" | "VBOX_E_INVALID_OBJECT_STATE" | "VBOX_E_INVALID_VM_STATE" => {
            Kind::Conflict
        }
        "VBOX_E_FILE_ERROR" => Kind::Io,
        "E_ACCESSDENIED" => Kind::Refused,
        _ => Kind::Failed,
    };
    let what = words.first().copied().unwrap_or_default();
    let reason = match (reasons.is_empty(), process::tail(said, 3)) {
        (false, _) => reasons.join(": "),
        (true, silent) if silent.is_empty() => {
            format!("it ended with {status}, and said nothing")
        }
        (true, tail) => format!("it ended with {status}: {tail}"),
    };
    let error = Error::new(kind, format!("VirtualBox refused `{what}`")).because(reason);
    match hint(what, said) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// What to try, by the status codes of VirtualBox's runtime that the text names (`iprt/err.h`, `VBox/err.h`) and by
/// what this host shows.
fn hint(what: &str, said: &str) -> Option<&'static str> {
    let names = |codes: &[&str]| codes.iter().any(|code| said.contains(code));
    if names(&[
        "VERR_VMX_NO_VMX",
        "VERR_SVM_NO_SVM",
        "VERR_VMX_MSR_ALL_VMX_DISABLED",
        "VERR_SVM_DISABLED",
        "VERR_VMX_IN_VMX_ROOT_MODE",
        "VERR_SVM_IN_USE",
        "VERR_NEM_NOT_AVAILABLE",
    ]) {
        return Some(
            "switch VT-x or AMD-V on in the firmware of this host, and end other hypervisors that hold it (`lsmod | grep kvm`)",
        );
    }
    if names(&["VERR_DISK_FULL", "No space left"]) {
        return Some(
            "free some space, then run the same command again: it goes on where it stopped",
        );
    }
    if names(&["VERR_NO_MEMORY", "VERR_NO_LOW_MEMORY"]) {
        return Some("stop other machines, or give this one less with `--virtualbox-memory`");
    }
    if names(&[
        "VERR_VM_DRIVER_NOT_INSTALLED",
        "VERR_VM_DRIVER_NOT_ACCESSIBLE",
    ]) || (what == "startvm" && without_module())
    {
        return Some(
            "VirtualBox's kernel module is not loaded: `sudo modprobe vboxdrv`, or `sudo /sbin/vboxconfig` after a new kernel; with Secure Boot it has to be signed",
        );
    }
    None
}

/// The device of VirtualBox's kernel module is absent, without which no machine starts on Linux.
pub(crate) fn without_module() -> bool {
    cfg!(target_os = "linux") && !Path::new("/dev/vboxdrv").exists()
}

fn parse_version(word: &str) -> Option<Version> {
    let mut parts = word.split('.');
    let number = |part: Option<&str>| part?.parse::<u32>().ok();
    let (major, minor) = (number(parts.next())?, number(parts.next())?);
    // The third begins with a digit and ends with a revision, such as `4_Debianr170995`.
    let third = parts.next()?;
    let end = third
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(third.len());
    Some(Version(major, minor, third[..end].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        assert_eq!(parse_version("7.2.4_Debianr170995"), Some(Version(7, 2, 4)));
        assert_eq!(parse_version("6.1.50r161033"), Some(Version(6, 1, 50)));
        for text in ["", "7", "7.2", "seven.2.1", "error: no 7.2.4"] {
            assert_eq!(parse_version(text), None, "{text}");
        }
        assert!(Version(6, 0, 24) < OLDEST && Version(7, 0, 0) > OLDEST);
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_ended_and_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let turn = hold::work(folder.path()).await.expect("a turn");
        let error = once(
            Path::new("sleep"),
            &["30"],
            turn.as_ref(),
            Duration::from_millis(100),
        )
        .await
        .expect_err("too long");
        assert_eq!(error.kind(), Kind::Timeout);
        assert!(
            error
                .message()
                .starts_with("`VBoxManage 30` did not end within")
        );
        assert!(
            error
                .deepest_hint()
                .is_some_and(|hint| hint.contains("VBoxSVC"))
        );
        drop(turn);
        let again = hold::work_within(folder.path(), Duration::from_secs(5)).await;
        assert!(again.expect("nobody has it").is_some());
    }

    #[test]
    fn a_warning_is_no_part_of_the_answer() {
        let warned = "WARNING: The character device /dev/vboxdrv does not exist.\n\t Please install it\n\n\t You will not.\n7.2.4r1\n";
        assert_eq!(without_warning(warned), "7.2.4r1\n");
        for text in ["7.2.4r1\n", "", "Name:  x\n  Enabled: Yes\n", " set in\n"] {
            assert_eq!(without_warning(text), text);
        }
        assert_eq!(without_warning("WARNING: x\n"), "");
    }

    #[test]
    fn kinds_follow_from_codes_and_reasons_reach_the_user() {
        let said = "WARNING: The character device /dev/vboxdrv does not exist.\n\
            VBoxManage: error: Could not find a registered machine named 'x'\n\
            VBoxManage: error: Details: code VBOX_E_OBJECT_NOT_FOUND (0x80bb0001), component VirtualBoxWrap, interface IVirtualBox, callee nsISupports\n\
            VBoxManage: error: Context: \"FindMachine(Bstr(VMNameOrUuid).raw(), machine.asOutParam())\" at line 3137 of file VBoxManageInfo.cpp\n";
        let error = understood(&["showvminfo", "x"], said, "exit status: 1");
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.message(), "VirtualBox refused `showvminfo`");
        assert_eq!(
            error.causes(),
            ["Could not find a registered machine named 'x'"]
        );
        let short = "VBoxManage: error: Failed to create medium\n\
            VBoxManage: error: Code VBOX_E_FILE_ERROR (0x80BB0004) - File not accessible or erroneous file contents (extended info not available)\n";
        let error = understood(&["createmedium"], short, "exit status: 1");
        assert_eq!(error.kind(), Kind::Io);
        assert!(
            error.line().contains("erroneous file contents"),
            "{}",
            error.line()
        );
        let silent = understood(&["list", "vms"], "", "signal: 9 (SIGKILL)");
        assert_eq!(silent.kind(), Kind::Failed);
        assert!(silent.line().contains("SIGKILL"));
    }

    #[test]
    fn a_way_out_is_told_by_the_codes_of_the_runtime() {
        let hint = |said: &str| {
            understood(&["controlvm"], said, "exit status: 1")
                .deepest_hint()
                .map(str::to_owned)
        };
        let off = hint(
            "VBoxManage: error: VT-x is disabled in the BIOS for all CPU modes (VERR_VMX_MSR_ALL_VMX_DISABLED)",
        );
        assert!(off.is_some_and(|hint| hint.contains("VT-x")));
        let module = hint(
            "VBoxManage: error: The VirtualBox kernel driver is not installed (VERR_VM_DRIVER_NOT_INSTALLED)",
        );
        assert!(module.is_some_and(|hint| hint.contains("modprobe vboxdrv")));
        assert_eq!(hint("VBoxManage: error: something else"), None);
    }
}
