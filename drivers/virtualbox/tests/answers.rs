//! What the driver makes of a VBoxManage that is missing, old, silent, garbled or in trouble: a script stands in its place.
//!
//! The texts are those that VirtualBox of several versions prints.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use forge_driver::{
    BaseImage, Claim, Driver, DriverHome, Error, Forward, Kind, Mac, Network, Nic, Seed, Spec,
};
use forge_virtualbox::{Config, VirtualBoxDriver};
use uuid::Uuid;

/// What VirtualBox's own package says before every answer when its kernel module is not loaded, on the standard output.
const NO_MODULE: &str = "WARNING: The vboxdrv kernel module is not loaded. Either there is no module\n\
    \x20        available for the current kernel (6.1.0-9-amd64) or it failed to\n\
    \x20        load. Please recompile the kernel module and install it by\n\n\
    \x20          sudo /sbin/vboxconfig\n\n\
    \x20        You will not be able to start VMs until this problem is fixed.\n";

/// What it says there from 7.0.16 on when it is run by way of `su` or `sudo`.
const OTHER_USER: &str =
    "WARNING: Environment variable LOGNAME or USER does not correspond to effective user id.\n";

const SERVERS: &str = "NetworkName:    HostInterfaceNetworking-vboxnet0\nDhcpd IP:       192.168.56.100\n\
    LowerIPAddress: 192.168.56.101\nUpperIPAddress: 192.168.56.254\nNetworkMask:    255.255.255.0\n\
    Enabled:        Yes\nGlobal Configuration:\n    minLeaseTime:     default\nGroups:               None\n\
    Individual Configs:   None\n";

const INTERFACES: &str = "Name:            vboxnet0\nGUID:            786f6276-656e-4074-8000-0a0027000000\n\
    DHCP:            Disabled\nIPAddress:       192.168.56.1\nNetworkMask:     255.255.255.0\nIPV6Address:\n\
    IPV6NetworkMaskPrefixLength: 0\nHardwareAddress: 0a:00:27:00:00:00\nMediumType:      Ethernet\n\
    Wireless:        No\nStatus:          Up\nVBoxNetworkName: HostInterfaceNetworking-vboxnet0\n";

/// A VBoxManage of these answers.
struct Scripted {
    folder: tempfile::TempDir,
    /// The beginning of a command, what it prints on both streams, and its exit code. The first that fits is taken.
    answers: Vec<(&'static str, String, String, i32)>,
}

impl Scripted {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            answers: Vec::new(),
        }
    }

    /// The same, which says this.
    fn says(mut self, words: &'static str, out: &str) -> Self {
        self.answers.push((words, out.into(), String::new(), 0));
        self
    }

    /// The same, which fails like this.
    fn fails(mut self, words: &'static str, err: &str, code: i32) -> Self {
        self.answers.push((words, String::new(), err.into(), code));
        self
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("VBoxManage")
    }

    /// Writes the program. A child does, because a file that this process has just written may still be open for
    /// writing in a child of another test, and then cannot be run.
    fn written(&self) {
        let mut script = "#!/bin/sh\ncase \"$*\" in\n".to_owned();
        let usual = [
            ("--version", "7.1.4r165100\n"),
            ("list dhcpservers", SERVERS),
        ];
        let usual = usual.map(|(words, out)| (words, out.to_owned(), String::new(), 0));
        for (words, out, err, code) in self.answers.iter().chain(&usual) {
            script += &format!(
                "'{words}'*)\ncat <<'=====out'\n{out}=====out\ncat >&2 <<'=====err'\n{err}=====err\nexit {code} ;;\n"
            );
        }
        script += "esac\n";
        let mut child = Command::new("sh")
            .args(["-c", "cat >\"$1\" && chmod 755 \"$1\"", "sh"])
            .arg(self.program())
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(script.as_bytes()).expect("written");
        drop(stdin);
        assert!(child.wait().expect("ended").success());
        forge_driver::conformance::empty_image(self.folder.path());
    }

    fn driver(&self) -> VirtualBoxDriver {
        let folder = self.folder.path();
        let config = Config {
            memory_mib: 128,
            disk_bytes: 1 << 30,
            vboxmanage: self.program(),
            ..Config::default()
        };
        let home = DriverHome {
            dir: folder.join("drivers/virtualbox"),
            store: folder.to_owned(),
            owner: Uuid::nil(),
            runtime: folder.join("run/store"),
            assets: forge_driver::assets::Assets::default(),
            token: forge_driver::Token::default(),
        };
        VirtualBoxDriver::open(config, home)
    }

    fn spec(&self) -> Spec {
        let claim = Claim::random();
        let forward = |guest: u16, port: u16| Forward {
            guest,
            host: SocketAddr::from((Ipv4Addr::new(127, 98, 7, 1), port)),
        };
        Spec {
            claim,
            name: "n1".into(),
            image: BaseImage {
                disk: self.folder.path().join("images/empty/disk.qcow2"),
                kernel: None,
                size: 64 << 20,
            },
            seed: Seed {
                user_data: "#cloud-config\n".into(),
                meta_data: "instance-id: x\n".into(),
                network_config: "version: 2\n".into(),
            },
            nic: Some(Nic {
                network: Network {
                    id: Uuid::new_v4(),
                    cidr: "10.98.7.0/24".parse().expect("a range"),
                    owner: Uuid::new_v4(),
                },
                address: Ipv4Addr::new(10, 98, 7, 101),
                mac: Mac::of(claim, 1),
            }),
            outer_mac: Mac::of(claim, 0),
            forwards: vec![forward(22, 2222), forward(2376, 2376)],
        }
    }

    /// What the pre-check says.
    async fn check(&self) -> Result<(), Error> {
        self.written();
        self.driver().check(&[self.spec()]).await
    }

    /// The error of a creation that gets as far as an answer that fails.
    async fn create(&self) -> Error {
        self.written();
        let driver = self.driver();
        driver.create(&self.spec()).await.expect_err("it fails")
    }
}

fn hint(error: &Error) -> &str {
    error.deepest_hint().unwrap_or_default()
}

#[tokio::test]
async fn a_version_is_found_behind_every_warning_and_judged() {
    for warning in [
        String::new(),
        NO_MODULE.into(),
        OTHER_USER.into(),
        format!("{NO_MODULE}{OTHER_USER}"),
    ] {
        for version in [
            "6.1.0r135406",
            "6.1.50_Ubuntur161033",
            "7.0.20_Debianr163906",
            "7.2.22r175245",
            "8.0.1r180000",
        ] {
            let answer = Scripted::new()
                .says("--version", &format!("{warning}{version}\n"))
                .says("list vms", &warning)
                .says("list hostonlyifs", &format!("{warning}{INTERFACES}"))
                .says("list dhcpservers", &format!("{warning}{SERVERS}"));
            answer
                .check()
                .await
                .unwrap_or_else(|error| panic!("{version}: {}", error.line()));
        }
        let old = Scripted::new().says("--version", &format!("{warning}6.0.24r139119\n"));
        let error = old.check().await.expect_err("too old");
        assert_eq!(error.kind(), Kind::Precheck);
        assert_eq!(
            error.message(),
            "VirtualBox 6.0.24r139119 is too old: 6.1 is the oldest that will do"
        );
        assert!(
            hint(&error).contains("install a newer one"),
            "{}",
            hint(&error)
        );
    }
}

#[tokio::test]
async fn an_answer_that_is_none_is_told_with_its_command() {
    for (words, answer) in [
        ("--version", ""),
        ("--version", "good morning\n"),
        ("--version", "7.1\n"),
        ("list vms", "garbage\n"),
        ("list vms", "\"n1\" {11111111-2222\n"),
        ("list hostonlyifs", "garbage\n"),
        ("list dhcpservers", "garbage\n"),
        (
            "list dhcpservers",
            "NetworkName:    forge\nDhcpd IP:       10.1\n",
        ),
    ] {
        let error = Scripted::new()
            .says(words, answer)
            .check()
            .await
            .expect_err(answer);
        assert_eq!(error.kind(), Kind::Precheck, "{words}: {answer}");
        let wanted = format!("`VBoxManage {words}` answered what forge does not understand");
        assert_eq!(error.message(), wanted, "{answer}");
        assert!(hint(&error).contains("forge doctor"), "{}", hint(&error));
    }
}

#[tokio::test]
async fn a_failure_without_a_word_is_told_with_its_code() {
    let error = Scripted::new()
        .fails("list vms", "", 1)
        .check()
        .await
        .expect_err("failed");
    assert_eq!(
        error.line(),
        "VirtualBox refused `list`: it ended with exit status: 1, and said nothing"
    );
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_told() {
    let none = Scripted::new();
    let error = none
        .driver()
        .check(&[none.spec()])
        .await
        .expect_err("missing");
    assert_eq!(error.kind(), Kind::Precheck);
    assert!(
        error.message().ends_with("is not installed"),
        "{}",
        error.message()
    );
    std::fs::write(none.program(), "#!/bin/sh\n").expect("written");
    let error = none
        .driver()
        .check(&[none.spec()])
        .await
        .expect_err("not executable");
    assert_eq!(error.kind(), Kind::Precheck);
    assert!(
        error.message().ends_with("cannot be executed"),
        "{}",
        error.message()
    );
    assert!(
        hint(&error).contains("make it executable"),
        "{}",
        hint(&error)
    );
}

#[tokio::test]
async fn what_overlaps_or_is_taken_is_refused_before_anything_is_made() {
    let taken = Scripted::new().says(
        "list vms",
        "\"n1\" {11111111-2222-4333-8444-555555555501}\n",
    );
    let error = taken.check().await.expect_err("taken");
    assert_eq!(error.message(), "VirtualBox has another machine named `n1`");
    let range = INTERFACES
        .replace("192.168.56.1\n", "10.133.0.1\n")
        .replace("255.255.255.0", "255.255.0.0");
    let error = Scripted::new()
        .says("list hostonlyifs", &range)
        .check()
        .await
        .expect_err("overlaps");
    assert_eq!(
        error.message(),
        "the network 10.133.7.0/24 of forge overlaps VirtualBox's host-only network `vboxnet0`, which is 10.133.0.0/16"
    );
}

#[tokio::test]
async fn what_starting_needs_is_named_in_the_hint() {
    for (said, wanted) in [
        (
            "VBoxManage: error: VT-x is disabled in the BIOS for all CPU modes (VERR_VMX_MSR_ALL_VMX_DISABLED)\n\
             VBoxManage: error: Details: code NS_ERROR_FAILURE (0x80004005), component ConsoleWrap, interface IConsole\n",
            "switch VT-x or AMD-V on",
        ),
        (
            "VBoxManage: error: AMD-V is disabled in the BIOS (or by the host OS) (VERR_SVM_DISABLED)\n",
            "switch VT-x or AMD-V on",
        ),
        (
            "VBoxManage: error: VirtualBox can't operate in VMX root mode. Please disable the KVM kernel extension, \
             recompile your kernel and reboot (VERR_VMX_IN_VMX_ROOT_MODE)\n",
            "lsmod | grep kvm",
        ),
        (
            "VBoxManage: error: The virtual machine 'n1' has terminated unexpectedly during startup with exit code 1 (0x1)\n\
             VBoxManage: error: The VirtualBox Linux kernel driver is not loaded (VERR_VM_DRIVER_NOT_INSTALLED)\n",
            "modprobe vboxdrv",
        ),
        (
            "VBoxManage: error: Failed to allocate memory (VERR_NO_MEMORY)\n",
            "--virtualbox-memory",
        ),
    ] {
        let error = Scripted::new().fails("startvm", said, 1).create().await;
        assert!(
            hint(&error).contains(wanted),
            "{}: {}",
            error.line(),
            hint(&error)
        );
        let reason = said
            .trim_start_matches("VBoxManage: error: ")
            .split('\n')
            .next()
            .unwrap_or_default();
        assert!(error.line().contains(reason), "{}", error.line());
    }
}

#[tokio::test]
async fn a_full_disk_and_a_damaged_base_are_told_with_their_file() {
    let full = "VBoxManage: error: Failed to create medium\n\
        VBoxManage: error: Could not create the differencing hard disk storage unit (VERR_DISK_FULL)\n\
        VBoxManage: error: Details: code VBOX_E_FILE_ERROR (0x80bb0004), component MediumWrap\n";
    let error = Scripted::new()
        .fails("createmedium", full, 1)
        .create()
        .await;
    assert_eq!(error.kind(), Kind::Io);
    assert!(hint(&error).contains("free some space"), "{}", hint(&error));
    let damaged = "VBoxManage: error: Could not get the storage format of the medium (VERR_NOT_SUPPORTED)\n\
        VBoxManage: error: Details: code VBOX_E_IPRT_ERROR (0x80bb0005), component MediumWrap\n";
    let error = Scripted::new()
        .fails("createmedium", damaged, 1)
        .create()
        .await;
    assert!(
        error.message().contains("/bases/empty.vdi`"),
        "{}",
        error.line()
    );
    assert!(
        hint(&error).contains("when that file is damaged"),
        "{}",
        hint(&error)
    );
}
