//! One machine in VirtualBox: built, started, taken apart.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::{Claim, Error, Kind, Mac, Result, Seed, State, atomic, seed};
use tokio::time::{Instant, sleep};

use crate::disk::{self, Medium};
use crate::info::{self, Info, rule_of};
use crate::manage::{Manage, text};
use crate::network::Attachment;
use crate::options::word;
use crate::vm::{Folder, Vm};

/// How long a machine may take to come to rest after it was switched off.
const REST: Duration = Duration::from_secs(30);

/// The controller of the disk and the seed: the one that every kernel for virtual machines drives, also those that are
/// built small for clouds.
const CONTROLLER: &str = "IDE";

/// What lies in a machine's folder.
pub(crate) struct Files<'a>(pub(crate) &'a Path);

impl Files<'_> {
    /// Its disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.0.join("disk.vdi")
    }

    /// Its seed.
    pub(crate) fn seed(&self) -> PathBuf {
        self.0.join("seed.iso")
    }

    /// What its serial port says.
    pub(crate) fn console(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// Where VirtualBox keeps its settings, in a folder of the machine's name.
    fn settings(&self) -> PathBuf {
        self.0.join("vm")
    }
}

/// What VirtualBox has under a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Nothing,
    /// The machine of this folder.
    Ours(Info),
    /// A machine whose settings lie elsewhere.
    Foreign(PathBuf),
    /// Something whose settings cannot be read.
    Unreadable(String),
}

/// Looks for the machine of a folder: its UUID is the claim, and its settings lie in that folder.
///
/// # Errors
/// When VirtualBox cannot be asked.
pub(crate) async fn find(manage: &Manage, folder: &Folder) -> Result<Found> {
    match info::find(manage, folder.claim()).await {
        Ok(info) => Ok(judged(info, folder.path())),
        // It is listed; what cannot be read of it is VirtualBox's word for it.
        Err(error) if error.kind() == Kind::Refused => Ok(Found::Unreadable(error.line())),
        Err(error) => Err(error),
    }
}

/// Whose a machine is.
pub(crate) fn judged(info: Option<Info>, folder: &Path) -> Found {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match info {
        None => Found::Nothing,
        Some(info) if real(&info.settings).starts_with(real(folder)) => Found::Ours(info),
        Some(info) => Found::Foreign(info.settings),
    }
}

/// The error for a machine that carries the claim and is not forge's.
pub(crate) fn foreign(claim: Claim, settings: &Path) -> Error {
    Error::new(
        Kind::Refused,
        format!("the machine `{claim}` of VirtualBox is not the one that forge made"),
    )
    .because(format!("its settings are `{}`", settings.display()))
    .hint("look at it with `VBoxManage showvminfo`: forge does not touch what is not its own")
}

/// What a new machine is made of.
pub(crate) struct New<'a> {
    /// What its disk differs from.
    pub(crate) base: &'a Path,
    /// The size of its disk.
    pub(crate) bytes: u64,
    /// What it reads at its first boot.
    pub(crate) seed: &'a Seed,
    /// What its second interface is attached to.
    pub(crate) attachment: &'a Attachment,
}

/// Makes the machine in a folder where nothing of it is left.
///
/// # Errors
/// What VirtualBox or the file system said.
pub(crate) async fn build(manage: &Manage, vm: &Vm, folder: &Folder, new: New<'_>) -> Result<()> {
    let files = Files(folder.path());
    let id = vm.claim.to_string();
    atomic::write(&files.seed(), &seed::image(new.seed)?, 0o600)?;
    disk::differ(manage, &files.disk(), new.base, new.bytes).await?;
    let settings = files.settings();
    let create = [
        "createvm",
        "--name",
        &vm.name,
        "--uuid",
        &id,
        "--ostype",
        "Debian_64",
    ];
    manage
        .call(
            &[
                &create[..],
                &["--basefolder", text(&settings)?, "--register"],
            ]
            .concat(),
        )
        .await?;
    let words = hardware(vm, &files, new.attachment)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    manage
        .call(&[&["modifyvm", &id][..], &words].concat())
        .await?;
    let controller = ["storagectl", &id, "--name", CONTROLLER, "--add", "ide"];
    manage
        .call(
            &[
                &controller[..],
                &["--controller", "PIIX4", "--bootable", "on"],
            ]
            .concat(),
        )
        .await?;
    for (port, kind, medium) in [("0", "hdd", files.disk()), ("1", "dvddrive", files.seed())] {
        manage
            .call(&attachment_of(&id, port, kind, text(&medium)?))
            .await?;
    }
    Ok(())
}

/// The words that put a medium into a place of the controller.
fn attachment_of<'a>(id: &'a str, port: &'a str, kind: &'a str, medium: &'a str) -> [&'a str; 12] {
    [
        "storageattach",
        id,
        "--storagectl",
        CONTROLLER,
        "--device",
        "0",
        "--port",
        port,
        "--type",
        kind,
        "--medium",
        medium,
    ]
}

/// The settings of a machine, in words that every VirtualBox from 6.1 on knows.
fn hardware(vm: &Vm, files: &Files<'_>, attachment: &Attachment) -> Result<Vec<String>> {
    let config = &vm.config;
    let switch = |on: bool| if on { "on" } else { "off" };
    let console = files.console();
    let memory = config.memory_mib.to_string();
    let cpus = config.cpus.to_string();
    let firmware = word(config.firmware);
    let mut words: Vec<&str> = vec![
        "--memory",
        &memory,
        "--cpus",
        &cpus,
        "--firmware",
        &firmware,
    ];
    words.extend(["--ioapic", "on", "--rtcuseutc", "on", "--vram", "16"]);
    words.extend(["--graphicscontroller", "vmsvga"]);
    words.extend([
        "--boot1", "disk", "--boot2", "none", "--boot3", "none", "--boot4", "none",
    ]);
    words.extend([
        "--uart1",
        "0x3F8",
        "4",
        "--uartmode1",
        "file",
        text(&console)?,
    ]);
    words.extend(["--natdnshostresolver1", switch(config.host_resolver)]);
    words.extend(["--natdnsproxy1", switch(config.dns_proxy)]);
    let adapters = adapters(vm, attachment);
    words.extend(adapters.iter().map(String::as_str));
    let rules: Vec<String> = vm.rules().map(|forward| rule_of(forward).1).collect();
    for rule in &rules {
        words.extend(["--natpf1", rule]);
    }
    Ok(words.into_iter().map(str::to_owned).collect())
}

/// A hardware address in VirtualBox's words.
fn plain(mac: &Mac) -> String {
    mac.to_string().replace(':', "").to_uppercase()
}

/// The words for both interfaces.
fn adapters(vm: &Vm, attachment: &Attachment) -> Vec<String> {
    let config = &vm.config;
    let (outer, inner) = (plain(&vm.outer_mac), plain(&vm.nic.mac));
    let (nat, lan) = (word(config.nat_nic), word(config.lan_nic));
    let promiscuous = word(config.promiscuous);
    let mut words = vec!["--nic1", "nat", "--nictype1", &nat];
    words.extend(["--macaddress1", &outer, "--cableconnected1", "on"]);
    words.extend(["--nictype2", &lan, "--macaddress2", &inner]);
    words.extend(["--cableconnected2", "on", "--nicpromisc2", &promiscuous]);
    words.extend(match attachment {
        Attachment::Internal(name) => ["--nic2", "intnet", "--intnet2", name],
        Attachment::HostOnly(interface) => ["--nic2", "hostonly", "--hostonlyadapter2", interface],
    });
    words.into_iter().map(str::to_owned).collect()
}

/// Brings a machine that is off back to what it was made as, where somebody changed what it cannot be reached without: its
/// interfaces, its disk. Whether its interfaces had to be.
///
/// # Errors
/// [`Kind::Corrupt`] when its disk or the base of that is gone; what VirtualBox said.
pub(crate) async fn mend(
    manage: &Manage,
    vm: &Vm,
    folder: &Folder,
    base: &Path,
    info: &Info,
    attachment: &Attachment,
) -> Result<bool> {
    let id = vm.claim.to_string();
    let disk = Files(folder.path()).disk();
    for (file, what) in [
        (disk.as_path(), "its disk"),
        (base, "the base image that its disk differs from"),
    ] {
        if !file.exists() {
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "{what}, `{}`, is gone: machine `{}` cannot start",
                    file.display(),
                    vm.name
                ),
            )
            .hint(format!(
                "bring that very file back, from a backup for example; else remove the machine: `forge rm {}`",
                vm.name
            )));
        }
    }
    let rewired = rewired(vm, info, attachment);
    if rewired {
        let words = adapters(vm, attachment);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        patiently(manage, &[&["modifyvm", &id][..], &words].concat()).await?;
    }
    // Where a snapshot was taken another disk is there, with what was written since.
    let there = info.values.get(&format!("{CONTROLLER}-0-0"));
    if there.is_none_or(|there| there == "none") {
        patiently(manage, &attachment_of(&id, "0", "hdd", text(&disk)?)).await?;
    }
    Ok(rewired)
}

/// Whether an interface of a machine is on something else than it was made for.
fn rewired(vm: &Vm, info: &Info, attachment: &Attachment) -> bool {
    let (outer, inner) = (plain(&vm.outer_mac), plain(&vm.nic.mac));
    let (kind, key, name) = match attachment {
        Attachment::Internal(name) => ("intnet", "intnet2", name),
        Attachment::HostOnly(name) => ("hostonly", "hostonlyadapter2", name),
    };
    let wanted = [
        ("nic1", "nat"),
        ("macaddress1", &outer),
        ("cableconnected1", "on"),
        ("nic2", kind),
        (key, name),
        ("macaddress2", &inner),
        ("cableconnected2", "on"),
    ];
    wanted
        .iter()
        .any(|(key, value)| info.values.get(*key).is_none_or(|there| there != value))
}

/// Changes the settings of a machine that is off or was so a moment ago, or a running one's: VirtualBox lets go of
/// a machine a little later than it says, and one command at a time has it.
///
/// # Errors
/// What VirtualBox said, when it says so for too long.
pub(crate) async fn patiently(manage: &Manage, words: &[&str]) -> Result<String> {
    let until = Instant::now() + REST;
    loop {
        match manage.call(words).await {
            Err(error) if error.kind() == Kind::Conflict && Instant::now() < until => {
                sleep(Duration::from_millis(200)).await;
            }
            done => return done,
        }
    }
}

/// Switches a machine off, and tells at what it rests, when it is there. Off already: succeeds.
///
/// # Errors
/// What VirtualBox said, or [`Kind::Timeout`] when it does not come to rest.
pub(crate) async fn off(manage: &Manage, claim: Claim) -> Result<Option<State>> {
    let id = claim.to_string();
    let until = Instant::now() + REST;
    let mut said = None;
    loop {
        let state = info::show(manage, claim).await?.map(|info| info.state);
        match state {
            None | Some(State::Stopped | State::Saved) => return Ok(state),
            // It may go down by itself in this moment: what counts is the state.
            Some(State::Running | State::Paused | State::Error) => {
                said = manage.call(&["controlvm", &id, "poweroff"]).await.err();
            }
            Some(_) => {}
        }
        if Instant::now() > until {
            let error = Error::new(
                Kind::Timeout,
                format!(
                    "VirtualBox did not switch `{claim}` off within {} s",
                    REST.as_secs()
                ),
            );
            return Err(match said {
                Some(said) => error.because(said),
                None => error,
            });
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Removes everything of a machine but its folder and its record, whatever an earlier call left of it.
///
/// # Errors
/// [`Kind::Refused`] when what is there is not forge's; what VirtualBox said.
pub(crate) async fn raze(manage: &Manage, folder: &Folder) -> Result<()> {
    let claim = folder.claim();
    let id = claim.to_string();
    match find(manage, folder).await? {
        Found::Foreign(settings) => return Err(foreign(claim, &settings)),
        Found::Nothing => {}
        Found::Ours(_) => {
            if off(manage, claim).await? == Some(State::Saved) {
                // VirtualBox changes nothing of a machine whose state is saved.
                manage.call(&["discardstate", &id]).await?;
            }
            // VirtualBox would delete the base as well with the last disk that differs from it. Where nothing is
            // attached it refuses, which is as good.
            let detach = attachment_of(&id, "0", "hdd", "none");
            let _ = patiently(manage, &detach).await;
            let closed = disk::close(manage, Medium::Disk, &Files(folder.path()).disk()).await;
            let mut words = vec!["unregistervm", &id];
            if closed.is_ok() {
                words.push("--delete");
            }
            // Snapshots hold on to the disk. With those, too, VirtualBox would delete the base: they are closed below.
            let removed = patiently(manage, &words).await;
            // With a base image that is gone VirtualBox reports an error and forgets the machine all the same.
            if info::find(manage, claim).await?.is_some() {
                removed?;
            }
        }
        // Nothing of it can be deleted any more but the entry.
        Found::Unreadable(_) => {
            patiently(manage, &["unregistervm", &id]).await?;
        }
    }
    let files = Files(folder.path());
    disk::close_below(manage, folder.path()).await?;
    disk::close(manage, Medium::Disc, &files.seed()).await?;
    for file in [files.disk(), files.seed()] {
        atomic::gone(fs::remove_file(&file), &file)?;
    }
    let settings = files.settings();
    atomic::gone(fs::remove_dir_all(&settings), &settings)?;
    let console = files.console();
    atomic::gone(fs::remove_file(&console), &console)
}
