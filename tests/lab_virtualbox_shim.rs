//! The laboratory of the driver `virtualbox` itself: machines that the real VBoxManage was told of boot from
//! their own disks by their own firmware, on the networks and with the leases that it lists.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use forge_lab::{Ran, Steps, Store, machines_of, run, wait};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
const WRAPPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/with-virtualbox");
const DEADLINE: Duration = Duration::from_secs(600);
const BOOT: Duration = Duration::from_secs(240);

const ONE: &str = "6f726765-0001-4000-8000-000000000001";
const TWO: &str = "6f726765-0002-4000-8000-000000000002";

#[test]
fn lab_virtualbox_shim() {
    if std::env::var_os("FORGE_VIRTUALBOX_INSIDE").is_some() {
        return inside();
    }
    // Outside, where the packages of an image can be reached.
    drop(Store::new(FORGE));
    let here = std::env::current_exe().expect("this program");
    let ran = run(
        Command::new(WRAPPER)
            .arg(here)
            .args(["--exact", "lab_virtualbox_shim", "--nocapture"]),
        b"",
        DEADLINE,
    );
    // Set in, so that nobody takes its result for one more.
    for line in ran.text().lines().chain(ran.err.lines()) {
        println!("  {line}");
    }
    assert_eq!(ran.code, 0, "{ran}");
    assert!(ran.text().contains("1 passed"), "{ran}");
}

/// Runs VBoxManage with the words of this line.
fn vbox(line: &str) -> Ran {
    run(
        Command::new("VBoxManage").args(line.split(' ')),
        b"",
        Duration::from_secs(120),
    )
}

/// What a call that succeeds says, without the warnings before it.
#[track_caller]
fn said(line: &str) -> String {
    let text = vbox(line).ok().text();
    match text.split_once("until this problem is fixed.") {
        Some((_, rest)) => rest.trim().to_owned(),
        None => text,
    }
}

fn state(uuid: &str) -> String {
    let text = said(&format!("showvminfo {uuid} --machinereadable"));
    let line = text.lines().find_map(|line| line.strip_prefix("VMState="));
    line.expect("a state").trim_matches('"').to_owned()
}

/// A folder with a base image, a seed for each machine, and a key for all.
struct Bench {
    folder: PathBuf,
}

impl Bench {
    fn make(store: &Store) -> Self {
        let folder = store.home().join("bench");
        fs::create_dir(&folder).expect("a folder");
        let image = fs::read_dir(store.home().join("images"))
            .expect("images")
            .flatten()
            .map(|entry| entry.path().join("disk.qcow2"))
            .find(|path| path.exists())
            .expect("an image");
        run(
            Command::new("qemu-img")
                .args(["convert", "-f", "qcow2", "-O", "vdi"])
                .arg(image)
                .arg(folder.join("base.vdi")),
            b"",
            DEADLINE,
        )
        .ok();
        for key in ["user", "host"] {
            run(
                Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"])
                    .arg(folder.join(key)),
                b"",
                DEADLINE,
            )
            .ok();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn read(&self, name: &str) -> String {
        let text = fs::read_to_string(self.folder.join(name)).expect("a file");
        text.trim().to_owned()
    }

    fn seed(&self, name: &str, macs: &[String]) -> String {
        let private: Vec<String> = self
            .read("host")
            .lines()
            .map(|line| format!("    {line}"))
            .collect();
        let nics: Vec<String> = macs
            .iter()
            .enumerate()
            .map(|(n, mac)| {
                format!("  lab{n}:\n    match:\n      macaddress: \"{mac}\"\n    dhcp4: true\n")
            })
            .collect();
        let seed = forge_driver::Seed {
            user_data: format!(
                "#cloud-config\n# forge-seed 1\nhostname: {name}\nusers:\n  - name: lab\n    \
                 ssh_authorized_keys:\n      - {}\nssh_keys:\n  ed25519_private: |\n{}\n  \
                 ed25519_public: {}\n",
                self.read("user.pub"),
                private.join("\n"),
                self.read("host.pub")
            ),
            meta_data: format!("instance-id: {name}\n"),
            network_config: format!("version: 2\nethernets:\n{}", nics.concat()),
        };
        let path = self.path(&format!("{name}.iso"));
        fs::write(&path, forge_driver::seed::image(&seed).expect("a seed")).expect("written");
        path
    }

    /// A machine, as a driver would tell VBoxManage of it.
    fn describe(&self, name: &str, uuid: &str, hardware: &str, controller: &str, nics: &str) {
        let macs = [1, 2, 3].map(|nic| format!("08:00:27:00:{}:0{nic}", &uuid[11..13]));
        let count = if nics.contains("--nic3") { 3 } else { 2 };
        let seed = self.seed(name, &macs[..count]);
        let (place, base) = (self.path("machines"), self.path("base.vdi"));
        let disk = format!("{place}/{name}/disk.vdi");
        let console = self.path(&format!("{name}.console"));
        let macs = macs.map(|mac| mac.replace(':', ""));
        said(&format!(
            "createvm --name {name} --uuid {uuid} --ostype Debian_64 --basefolder {place} --register"
        ));
        said(&format!(
            "modifyvm {uuid} {hardware} {nics} --macaddress1 {} --macaddress2 {} --macaddress3 {} \
             --uart1 0x3F8 4 --uart-mode1 file {console}",
            macs[0], macs[1], macs[2]
        ));
        said(&format!("storagectl {uuid} --name disks {controller}"));
        said(&format!(
            "createmedium disk --filename {disk} --diffparent {base}"
        ));
        said(&format!("modifymedium disk {disk} --resize 30720"));
        let attach = format!("storageattach {uuid} --storagectl disks --device 0");
        said(&format!("{attach} --port 0 --type hdd --medium {disk}"));
        // A base of the normal type would be deleted with the last machine that has a disk of it.
        said(&format!("modifymedium disk {base} --type multiattach"));
        said(&format!(
            "{attach} --port 1 --type dvddrive --medium {seed}"
        ));
    }

    /// Runs a line of shell on the machine whose SSH is behind this port.
    #[track_caller]
    fn ssh(&self, port: u16, line: &str) -> String {
        let known = "-oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oLogLevel=ERROR";
        let mut command = Command::new("ssh");
        command
            .args(known.split(' '))
            .args([
                "-oBatchMode=yes",
                "-oConnectTimeout=60",
                "-p",
                &port.to_string(),
                "-i",
            ])
            .arg(self.folder.join("user"))
            .args(["lab@127.0.0.1", line]);
        run(&mut command, b"", Duration::from_secs(120)).ok().text()
    }
}

/// Whether SSH speaks at an address.
fn speaks(address: &str) -> Result<(), String> {
    let address = address.parse().map_err(|error| format!("{error}"))?;
    let patience = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, patience).map_err(|e| e.to_string())?;
    stream
        .set_read_timeout(Some(patience))
        .map_err(|e| e.to_string())?;
    let mut banner = [0; 4];
    stream.read_exact(&mut banner).map_err(|e| e.to_string())?;
    (&banner == b"SSH-")
        .then_some(())
        .ok_or(format!("{banner:?}"))
}

#[track_caller]
fn up(address: &str) {
    wait(&format!("SSH at {address}"), BOOT, || speaks(address));
}

#[track_caller]
fn becomes(uuid: &str, word: &str) {
    wait(&format!("{uuid} is {word}"), BOOT, || {
        let now = state(uuid);
        (now == word).then_some(()).ok_or(now)
    });
}

fn start(uuid: &str) {
    let told = said(&format!("startvm {uuid} --type headless"));
    assert!(told.contains("has been successfully started"), "{told}");
    assert_eq!(state(uuid), "running");
}

fn inside() {
    let mut steps = Steps::new("virtualbox");
    let store = Store::new(FORGE);
    let bench = Bench::make(&store);

    steps.step("two machines, as the real VBoxManage keeps them");
    said("hostonlyif create");
    assert!(said("list hostonlyifs").contains("192.168.56.1"));
    said(
        "dhcpserver add --network forge --server-ip 10.133.7.99 --netmask 255.255.255.0 \
         --lower-ip 10.133.7.100 --upper-ip 10.133.7.200 --enable",
    );
    let nics = "--nic1 nat --nictype1 virtio --nic2 intnet --intnet2 forge --nictype2 virtio";
    bench.describe(
        "n1",
        ONE,
        "--memory 1024 --cpus 1 --firmware bios --chipset piix3 --rtc-use-utc on",
        "--add ide --controller PIIX4",
        &format!("{nics} --natpf1 ssh,tcp,127.0.0.1,2201,,22"),
    );
    bench.describe(
        "n2",
        TWO,
        "--memory 1024 --cpus 1 --firmware efi --chipset ich9 --graphicscontroller none",
        "--add virtio --controller VirtIO --portcount 2",
        &format!(
            "{nics} --natpf1 ssh,tcp,127.0.0.1,2202,,22 --nic3 hostonly --nictype3 virtio --hostonlyadapter3 vboxnet0"
        ),
    );
    for (network, uuid, nic, address) in [
        ("forge", ONE, "2", "10.133.7.171"),
        ("forge", TWO, "2", "10.133.7.172"),
        (
            "HostInterfaceNetworking-vboxnet0",
            TWO,
            "3",
            "192.168.56.150",
        ),
    ] {
        said(&format!(
            "dhcpserver modify --network {network} --vm {uuid} --nic {nic} --fixed-address {address}"
        ));
    }

    steps.step("they boot from their disks, one by BIOS and one by UEFI");
    start(ONE);
    start(TWO);
    let running = said("list runningvms");
    assert_eq!(running, format!("\"n1\" {{{ONE}}}\n\"n2\" {{{TWO}}}"));
    up("127.0.0.1:2201");
    up("127.0.0.1:2202");
    for (port, name, firmware) in [(2201, "n1", "bios"), (2202, "n2", "efi")] {
        let line = "hostname; [ -d /sys/firmware/efi ] && echo efi || echo bios; cat /sys/class/dmi/id/product_name";
        assert_eq!(
            bench.ssh(port, line),
            format!("{name}\n{firmware}\nVirtualBox")
        );
        let size = bench.ssh(port, "cat /sys/block/sda/size");
        assert_eq!(size, (30_u64 << 30 >> 9).to_string());
    }
    assert!(
        !fs::read(bench.folder.join("n1.console"))
            .expect("the console")
            .is_empty()
    );

    steps.step("each has the address that the DHCP server of its network keeps for it");
    let addresses = |port| bench.ssh(port, "ip -4 -o addr show scope global");
    assert!(
        addresses(2201).contains(" 10.133.7.171/24 "),
        "{}",
        addresses(2201)
    );
    assert!(
        addresses(2202).contains(" 10.133.7.172/24 "),
        "{}",
        addresses(2202)
    );
    assert!(
        addresses(2202).contains(" 192.168.56.150/24 "),
        "{}",
        addresses(2202)
    );
    let mac = "08:00:27:00:01:02";
    let lease = said(&format!(
        "dhcpserver findlease --network forge --mac-address {mac}"
    ));
    assert!(lease.contains("10.133.7.171"), "{lease}");
    // The machines see each other there; this host is not on that network, but it is on the host-only one.
    let hello = bench.ssh(
        2201,
        "read -r line </dev/tcp/10.133.7.172/22 && echo \"${line%%-*}\"",
    );
    assert_eq!(hello, "SSH");
    speaks("10.133.7.172:22").expect_err("an internal network");
    speaks("192.168.56.150:22").expect("a host-only network");

    steps.step("a machine that runs is locked");
    let disk = bench.path("machines/n1/disk.vdi");
    for line in [
        format!("modifyvm {ONE} --memory 2048"),
        format!("startvm {ONE} --type headless"),
        format!("unregistervm {ONE} --delete"),
        format!("modifymedium disk {disk} --resize 40960"),
    ] {
        let refused = vbox(&line).exits(1);
        assert!(
            refused.err.contains("VBOX_E_INVALID_OBJECT_STATE"),
            "{refused}"
        );
    }

    steps.step("ports are forwarded while it runs, and stay");
    said(&format!(
        "controlvm {ONE} natpf1 web,tcp,127.0.0.1,2211,,22"
    ));
    speaks("127.0.0.1:2211").expect("forwarded");
    let rules = said(&format!("showvminfo {ONE} --machinereadable"));
    assert!(rules.contains("=\"web,tcp,127.0.0.1,2211,,22\""), "{rules}");
    said(&format!("controlvm {ONE} natpf1 delete web"));
    speaks("127.0.0.1:2211").expect_err("not forwarded any more");

    steps.step("paused, saved, and gone on with");
    bench.ssh(2202, "echo here >/dev/shm/mark");
    said(&format!("controlvm {TWO} pause"));
    assert_eq!(state(TWO), "paused");
    said(&format!("controlvm {TWO} resume"));
    assert_eq!(state(TWO), "running");
    said(&format!("controlvm {TWO} savestate"));
    assert_eq!(state(TWO), "saved");
    start(TWO);
    up("127.0.0.1:2202");
    assert_eq!(bench.ssh(2202, "cat /dev/shm/mark"), "here");

    steps.step("switched off by its button, it starts again with what it had");
    bench.ssh(2201, "echo kept >mark && sync");
    said(&format!("controlvm {ONE} acpipowerbutton"));
    becomes(ONE, "poweroff");
    start(ONE);
    up("127.0.0.1:2201");
    assert_eq!(bench.ssh(2201, "cat mark"), "kept");
    assert!(
        addresses(2201).contains(" 10.133.7.171/24 "),
        "{}",
        addresses(2201)
    );

    steps.step("a process that is killed is an aborted machine");
    for process in machines_of(TWO) {
        process.kill();
    }
    becomes(TWO, "aborted");
    assert_eq!(said("list runningvms"), format!("\"n1\" {{{ONE}}}"));

    steps.step("nothing is left of them");
    said(&format!("controlvm {ONE} poweroff"));
    assert_eq!(state(ONE), "poweroff");
    for uuid in [ONE, TWO] {
        said(&format!("unregistervm {uuid} --delete"));
    }
    assert_eq!(said("list vms"), "");
    let disks = said("list hdds");
    assert!(!disks.contains("disk.vdi"), "{disks}");
    assert!(!Path::new(&bench.path("machines/n1")).exists());
    let links = run(Command::new("ip").args(["-br", "link"]), b"", DEADLINE)
        .ok()
        .text();
    let left: Vec<&str> = links
        .lines()
        .filter(|line| line.starts_with("vb"))
        .collect();
    assert!(
        left.len() == 1 && left[0].starts_with("vboxnet0"),
        "{links}"
    );
    let folder = std::env::var("FORGE_VIRTUALBOX_FOLDER").expect("a folder");
    said(&format!(
        "closemedium disk {} --delete",
        bench.path("base.vdi")
    ));
    let state = Path::new(&folder).join("state");
    let entries = |part: &str| {
        let entries = fs::read_dir(state.join(part)).expect(part).flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(entries("machines"), [""; 0]);
    assert_eq!(entries("media"), ["lock"]);
}
