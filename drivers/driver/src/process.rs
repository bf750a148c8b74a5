//! Children with deadlines.
//!
//! Lock files of the store are open without `O_CLOEXEC`, so that short-lived children (qemu-img,
//! mmdebstrap …) hold the lock on for as long as they work, even when forge itself is killed.
//! Children that outlive the command, or start such ones ([`detach`]), let go of everything that they are not handed.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::error::{Context, Error, Kind, Result};

/// At most this much of each output stream is kept; more is read and dropped.
pub const OUTPUT_LIMIT: usize = 4 << 20;

/// What a finished child left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, cut at [`OUTPUT_LIMIT`].
    pub stdout: Vec<u8>,
    /// Its standard error, cut at [`OUTPUT_LIMIT`].
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The last lines of standard error (of standard output when that is empty), for error messages.
    pub fn tail(&self) -> String {
        let bytes = if self.stderr.iter().all(u8::is_ascii_whitespace) {
            &self.stdout
        } else {
            &self.stderr
        };
        tail(&String::from_utf8_lossy(bytes), 12)
    }

    /// This output, or an error that shows its end.
    ///
    /// # Errors
    /// [`Kind::Failed`] when the child did not exit with 0.
    pub fn success(self, what: &str) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        Err(
            Error::new(Kind::Failed, format!("{what} ended with {}", self.status))
                .because(self.tail()),
        )
    }
}

/// The last `lines` lines of `text` that are not empty.
pub fn tail(text: &str, lines: usize) -> String {
    let kept: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    kept[kept.len().saturating_sub(lines)..].join("\n")
}

/// Runs `command` to its end, with `input` on its standard input, for at most `deadline`; then it is
/// killed. It is also killed when the returned future is dropped.
///
/// # Errors
/// [`Kind::Unavailable`] when the program is missing, [`Kind::Timeout`] at the deadline. An exit code
/// other than 0 is not an error here: see [`Output::success`].
pub async fn run(mut command: Command, input: Option<&[u8]>, deadline: Duration) -> Result<Output> {
    command.stdin(if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    let program = name_of(command.as_std().get_program());
    ended(&program, command, input, deadline).await
}

/// As [`run`], of `program` with `words`, beneath a shell that has `held` open until the program ends, also when this
/// process is killed. The program and what it starts, which may live on, do not have it.
///
/// # Errors
/// As [`run`].
pub async fn run_holding(
    program: &Path,
    words: &[&str],
    held: OwnedFd,
    environment: impl FnOnce(&mut Command),
    deadline: Duration,
) -> Result<Output> {
    let mut command = Command::new("sh");
    command
        // The exit keeps the shell from becoming the program.
        .args(["-c", "\"$0\" \"$@\" </dev/null; exit $?"])
        .arg(program)
        .args(words)
        .stdin(held);
    environment(&mut command);
    detach(command.as_std_mut(), &[]);
    ended(&name_of(program.as_os_str()), command, None, deadline).await
}

/// Runs a command whose standard input is decided; errors name `program`.
async fn ended(
    program: &str,
    mut command: Command,
    input: Option<&[u8]>,
    deadline: Duration,
) -> Result<Output> {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: it ends as a whole, and a Ctrl-C at the terminal lets it end its step.
        .process_group(0);
    let mut child = command.spawn().map_err(|error| missing(program, error))?;
    let group = Group(child.id());
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let work = async {
        let feed = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // A child that does not read to the end says so by its exit code.
                let _ = stdin.write_all(input).await;
            }
        };
        let ((), stdout, stderr) = tokio::join!(feed, collect(stdout), collect(stderr));
        let status = child
            .wait()
            .await
            .or_fail(Kind::Io, || format!("failed to wait for `{program}`"))?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    };
    match timeout(deadline, work).await {
        Ok(done) => {
            // What it left running on purpose (a daemon) stays.
            std::mem::forget(group);
            done
        }
        Err(_) => {
            drop(group);
            let _ = timeout(Duration::from_secs(5), child.wait()).await;
            Err(Error::new(
                Kind::Timeout,
                format!("`{program}` did not end within {} s", deadline.as_secs()),
            ))
        }
    }
}

/// Runs `command` in the foreground of the terminal, so that it can ask the user, and waits for its end.
///
/// # Errors
/// [`Kind::Unavailable`] when the program is missing, [`Kind::Failed`] when it does not exit with 0.
pub async fn foreground(mut command: Command) -> Result<()> {
    let program = name_of(command.as_std().get_program());
    let status = command
        .status()
        .await
        .map_err(|error| missing(&program, error))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Failed,
        format!("`{program}` ended with {status}"),
    ))
}

/// Becomes `command`, with this process's standard streams, terminal and place in its group: signals and the exit code
/// are the program's own from there on. Returns only when it could not be started. The caller holds no lock.
pub fn replace(mut command: std::process::Command) -> Error {
    use std::os::unix::process::CommandExt;
    let program = name_of(command.get_program());
    missing(&program, command.exec())
}

/// A process group that is killed when this is dropped: the child and all that it started.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // Gone already: nothing to end.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

async fn collect(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else {
        return kept;
    };
    let mut buffer = [0; 8192];
    while let Ok(count) = stream.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        let room = OUTPUT_LIMIT.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(&buffer[..room]);
    }
    kept
}

fn name_of(program: &OsStr) -> String {
    program.to_string_lossy().into_owned()
}

fn missing(program: &str, error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        Error::new(Kind::Unavailable, format!("`{program}` is not installed"))
            .hint("run `forge doctor` to see what is missing, `forge doctor --fix` to install it")
    } else {
        Error::new(Kind::Failed, format!("failed to start `{program}`")).because(error)
    }
}

/// Prepares `command` for a life beyond this process: its own session, and no descriptor but the
/// standard three and those in `keep`, so that it never holds a lock of the store.
pub fn detach(command: &mut std::process::Command, keep: &[BorrowedFd<'_>]) {
    use std::os::unix::process::CommandExt;
    let keep: Vec<i32> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    // Descriptors are given out from the lowest free number; others may be opened until the fork.
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    let highest = open
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .max();
    let bound = highest.map_or(4096, |highest| highest + 256).max(1024);
    #[expect(
        unsafe_code,
        reason = "pre_exec is the only place between fork and exec; only async-signal-safe calls are made"
    )]
    // SAFETY: after fork the closure makes system calls (setsid, fcntl) and nothing else; it does not
    // allocate, lock or touch shared state. The descriptors are open in the parent until spawn returns.
    unsafe {
        command.pre_exec(move || {
            let _ = rustix::process::setsid();
            for fd in 3..bound {
                let fd_borrowed = BorrowedFd::borrow_raw(fd);
                let flags = if keep.contains(&fd) {
                    rustix::io::FdFlags::empty()
                } else {
                    rustix::io::FdFlags::CLOEXEC
                };
                // A descriptor that is not open answers EBADF: nothing to let go of.
                let _ = rustix::io::fcntl_setfd(fd_borrowed, flags);
            }
            Ok(())
        });
    }
}

/// Where `program` is, looked for as the shell would.
pub fn which(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return executable(program).then(|| program.to_owned());
    }
    search(program, &std::env::var_os("PATH")?)
}

fn search(program: &Path, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| !folder.as_os_str().is_empty())
        .map(|folder| folder.join(program))
        .find(|file| executable(file))
}

fn executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file)
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn input_and_output_pass() {
        let output = run(
            sh("cat; echo err >&2; exit 3"),
            Some(b"hello"),
            Duration::from_secs(10),
        )
        .await
        .expect("runs");
        assert_eq!(output.text(), "hello");
        assert_eq!(output.status.code(), Some(3));
        let error = output.success("the script").expect_err("3 is a failure");
        assert_eq!(error.causes(), ["err"]);
    }

    #[tokio::test]
    async fn a_child_is_ended_at_its_deadline() {
        let error = run(sh("sleep 60"), None, Duration::from_millis(50))
            .await
            .expect_err("too slow");
        assert_eq!(error.kind(), Kind::Timeout);
    }

    #[tokio::test]
    async fn what_a_child_started_ends_with_it() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        run(sh(&script), None, Duration::from_millis(500))
            .await
            .expect_err("too slow");
        let pid = std::fs::read_to_string(file).expect("the grandchild began");
        let gone = |pid: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .map_or(true, |stat| stat.contains(") Z "))
        };
        for _ in 0..100 {
            if gone(pid.trim()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the grandchild {pid} outlived its parent by 5 s");
    }

    #[tokio::test]
    async fn what_is_held_for_a_child_is_held_until_it_ends_and_not_by_what_it_leaves() {
        let folder = tempfile::tempdir().expect("folder");
        let lock = folder.path().join("lock");
        let held = std::fs::File::create(&lock).expect("file");
        held.lock().expect("locked");
        let probe = std::fs::File::open(&lock).expect("file");
        // The child leaves a process behind, and sees its lock held by its own parent alone.
        let script = "sleep 20 >/dev/null 2>&1 & echo $!; : >\"$0/begun\"; \
            until [ -e \"$0/go\" ]; do sleep 0.05; done; [ \"$(readlink /proc/self/fd/0)\" = /dev/null ]";
        let words = ["-c", script, folder.path().to_str().expect("text")];
        let given = OwnedFd::from(held);
        let program = Path::new("sh");
        let running = run_holding(program, &words, given, |_| {}, Duration::from_secs(20));
        let beside = async {
            for _ in 0..200 {
                if folder.path().join("begun").exists() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let free = probe.try_lock().is_ok();
            std::fs::write(folder.path().join("go"), "").expect("written");
            free
        };
        let (output, free) = tokio::join!(running, beside);
        let output = output.expect("runs");
        assert!(output.status.success(), "{output:?}");
        assert!(!free, "it is held while the child runs");
        // For a moment a child of another test may have a copy of it.
        for left in (0..100).rev() {
            match probe.try_lock() {
                Ok(()) => break,
                Err(error) => assert!(left > 0, "still held: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let pid = output.text().trim().parse().ok();
        let pid = pid.and_then(rustix::process::Pid::from_raw).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it lived on");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = run(
            Command::new("no-such-program"),
            None,
            Duration::from_secs(1),
        )
        .await
        .expect_err("missing");
        assert_eq!(error.message(), "`no-such-program` is not installed");
        assert!(error.deepest_hint().is_some());
    }

    #[test]
    fn what_cannot_take_this_process_over_is_named() {
        let error = replace(std::process::Command::new("no-such-program"));
        assert_eq!(error.message(), "`no-such-program` is not installed");
    }

    #[test]
    fn a_detached_child_lets_go_of_all_but_what_it_is_handed() {
        use std::os::fd::AsFd;
        let kept = tempfile::tempfile().expect("file");
        let dropped = tempfile::tempfile().expect("file");
        rustix::io::fcntl_setfd(&dropped, rustix::io::FdFlags::empty()).expect("fcntl");
        let mut command = std::process::Command::new("sh");
        command.args([
            "-c",
            &format!(
                "[ -e /proc/self/fd/{} ] && [ ! -e /proc/self/fd/{} ]",
                kept.as_raw_fd(),
                dropped.as_raw_fd()
            ),
        ]);
        detach(&mut command, &[kept.as_fd()]);
        assert!(command.status().expect("runs").success());
    }

    #[test]
    fn programs_are_found_as_the_shell_does() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("tool");
        std::fs::write(&file, "").expect("write");
        assert_eq!(
            search(Path::new("tool"), folder.path().as_os_str()),
            None,
            "not executable"
        );
        let mut mode = std::fs::metadata(&file).expect("stat").permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        std::fs::set_permissions(&file, mode).expect("chmod");
        assert_eq!(
            search(Path::new("tool"), folder.path().as_os_str()),
            Some(file.clone())
        );
        assert_eq!(which(&file), Some(file));
        assert_eq!(which(Path::new("/nonexistent/tool")), None);
    }
}
