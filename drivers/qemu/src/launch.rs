//! Starting the process of a machine.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::ports::free;
use forge_driver::{Context, Error, Forward, KernelFiles, Kind, Result, atomic, process};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::arguments::arguments;
use crate::folder::Folder;
use crate::host;
use crate::network::Networks;
use crate::qmp::Qmp;
use crate::sockets::Sockets;
use crate::vm::Vm;

/// How long QEMU may take until it has set up its devices and goes into the background.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How long its control socket may then take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// A console longer than this is set aside when the machine starts again; one older is kept.
const CONSOLE_LIMIT: u64 = 4 << 20;

/// Starts the machine, unless a process of it lives. The caller holds the folder's work lock.
///
/// The new process holds the run lock from before it exists until after it is gone, so that there are
/// never two of one machine, also when this process is killed at any line.
///
/// # Errors
/// What QEMU said, with the port's owner when a port is the reason.
pub(crate) async fn launch(
    vm: &Vm,
    folder: &Folder,
    sockets: &Sockets,
    networks: &Networks,
    kernel: Option<&KernelFiles>,
) -> Result<()> {
    let Some(lock) = folder.run_lock().await? else {
        return Ok(());
    };
    let forwards: Vec<Forward> = vm.forwards().collect();
    free(&forwards)?;
    sockets.prepare()?;
    if let Some(nic) = &vm.nic {
        networks.serve(nic.network.id).await?;
    }
    remove_leftovers(vm, folder, sockets)?;
    prepare_console(&folder.console())?;
    start(vm, folder, sockets, kernel, lock).await?;
    protect(vm, sockets)?;
    if let Some(nic) = &vm.nic {
        // A switch that was about to end when we looked has seen no machine.
        networks.serve(nic.network.id).await?;
    }
    answers(vm, folder, sockets).await
}

async fn start(
    vm: &Vm,
    folder: &Folder,
    sockets: &Sockets,
    kernel: Option<&KernelFiles>,
    lock: OwnedFd,
) -> Result<()> {
    let mut command = std::process::Command::new(&vm.config.binary);
    command
        .args(arguments(
            vm,
            folder,
            sockets,
            kernel,
            firmware().as_deref(),
        ))
        .current_dir(folder.path());
    process::detach(&mut command, &[lock.as_fd()]);
    let output = process::run(Command::from(command), None, START_DEADLINE).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Failed,
        format!(
            "failed to start the virtual machine `{}`: `{}` ended with {}",
            vm.name,
            vm.config.binary.display(),
            output.status
        ),
    )
    .because(last_words(folder).unwrap_or_else(|| output.tail()))
    .hint("`forge doctor` shows what this host's QEMU can do"))
}

/// What QEMU wrote to its log, which is all of its words once it has opened it.
fn last_words(folder: &Folder) -> Option<String> {
    let said = process::tail(&fs::read_to_string(folder.log()).ok()?, 5);
    (!said.is_empty()).then_some(said)
}

/// The firmware of machine types that have none of their own.
fn firmware() -> Option<PathBuf> {
    host::ARCH
        .firmware()
        .iter()
        .map(PathBuf::from)
        .find(|file| file.is_file())
}

/// Removes what a process that was killed leaves: we hold its lock, so it is gone.
fn remove_leftovers(vm: &Vm, folder: &Folder, sockets: &Sockets) -> Result<()> {
    remove(&folder.pid())?;
    remove(&folder.log())?;
    remove_sockets(vm, sockets)
}

/// Removes the sockets of a machine that does not run.
pub(crate) fn remove_sockets(vm: &Vm, sockets: &Sockets) -> Result<()> {
    remove(&sockets.qmp(vm.claim))?;
    match &vm.nic {
        Some(nic) => remove(&sockets.port(nic.network.id, vm.claim)),
        None => Ok(()),
    }
}

/// Removes a file; gone already: succeeds.
pub(crate) fn remove(file: &Path) -> Result<()> {
    atomic::gone(fs::remove_file(file), file)
}

/// Keeps the console from growing for ever and from being read by others.
fn prepare_console(console: &Path) -> Result<()> {
    let failed = || format!("failed to set up the console `{}`", console.display());
    if fs::metadata(console).is_ok_and(|meta| meta.len() > CONSOLE_LIMIT) {
        fs::rename(console, console.with_extension("log.1")).or_fail(Kind::Io, failed)?;
    }
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(console)
        .map(drop)
        .map_err(|error| atomic::full(error, &failed()))
}

/// Closes the sockets to others: QEMU sets a umask of its own when it goes into the background.
fn protect(vm: &Vm, sockets: &Sockets) -> Result<()> {
    let port = vm
        .nic
        .as_ref()
        .map(|nic| sockets.port(nic.network.id, vm.claim));
    for socket in [Some(sockets.qmp(vm.claim)), port].into_iter().flatten() {
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))
            .or_fail(Kind::Io, || {
                format!("failed to protect the socket `{}`", socket.display())
            })?;
    }
    Ok(())
}

/// Waits until the machine that carries the claim answers at its control socket.
async fn answers(vm: &Vm, folder: &Folder, sockets: &Sockets) -> Result<()> {
    let until = Instant::now() + ANSWER_DEADLINE;
    loop {
        let error = match Qmp::open(&sockets.qmp(vm.claim), vm.claim).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == Kind::Refused => return Err(error),
            Err(error) => error,
        };
        if !folder.running()? || Instant::now() > until {
            let why = last_words(folder).unwrap_or_else(|| error.line());
            return Err(Error::new(
                Kind::Failed,
                format!(
                    "the virtual machine `{}` ended as soon as it was started",
                    vm.name
                ),
            )
            .because(why));
        }
        sleep(Duration::from_millis(20)).await;
    }
}
