//! The words that QEMU is started with: a pure function of what is recorded.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use forge_driver::{Forward, KernelFiles};

use crate::folder::Folder;
use crate::sockets::Sockets;
use crate::vm::Vm;

/// The id of the network that leads out, by which ports are forwarded later.
pub(crate) const OUTER: &str = "outer";

/// The words that start `vm`. With `kernel` the kernel is started directly, else the disk's own
/// bootloader is.
///
/// There is no device that a container host does not need, and no ROM for network boot: each costs
/// time at every boot, most of all under emulation.
pub(crate) fn arguments(
    vm: &Vm,
    folder: &Folder,
    sockets: &Sockets,
    kernel: Option<&KernelFiles>,
    firmware: Option<&Path>,
) -> Vec<OsString> {
    let config = &vm.config;
    let mut words = Words::default();
    words.pair("-name", &format!("forge-{}", escape(&vm.name)));
    words.pair("-uuid", &vm.claim.to_string());
    words.flag("-no-user-config").flag("-nodefaults");
    words.pair("-display", "none");
    words.pair("-machine", &vm.hardware.machine);
    words.pair("-accel", accelerator(&vm.hardware.accelerator));
    words.pair("-cpu", &vm.hardware.cpu);
    words.pair("-smp", &config.cpus.to_string());
    words.pair("-m", &format!("{}M", config.memory_mib));
    if let Some(firmware) = firmware {
        words.flag("-bios").flag(firmware);
    }
    words.pair("-boot", "strict=on");

    words.path(
        "-blockdev",
        "driver=qcow2,node-name=disk,file.driver=file,file.filename=",
        &folder.disk(),
        cache(config),
    );
    words.pair("-device", "virtio-blk-pci,drive=disk,bootindex=1");
    words.path(
        "-blockdev",
        "driver=raw,node-name=seed,read-only=on,file.driver=file,file.filename=",
        &folder.seed(),
        "",
    );
    words.pair("-device", "virtio-blk-pci,drive=seed");

    let forwards: String = vm
        .forwards()
        .map(|forward| format!(",hostfwd={}", rule(forward)))
        .collect();
    words.pair("-netdev", &format!("user,id={OUTER},ipv6=off{forwards}"));
    words.pair(
        "-device",
        &format!(
            "virtio-net-pci,netdev={OUTER},romfile=,mac={}",
            vm.outer_mac
        ),
    );
    if let Some(nic) = &vm.nic {
        let network = nic.network.id;
        let mut netdev = OsString::from("dgram,id=inner,local.type=unix,local.path=");
        netdev.push(escaped(&sockets.port(network, vm.claim)));
        netdev.push(",remote.type=unix,remote.path=");
        netdev.push(escaped(
            &sockets.network(network).join(crate::switch::SOCKET),
        ));
        words.flag("-netdev").flag(netdev);
        words.pair(
            "-device",
            &format!("virtio-net-pci,netdev=inner,romfile=,mac={}", nic.mac),
        );
    }
    words.pair("-device", "virtio-rng-pci");

    words.path(
        "-chardev",
        "file,id=console,append=on,path=",
        &folder.console(),
        "",
    );
    words.pair("-serial", "chardev:console");
    words.path(
        "-chardev",
        "socket,id=qmp,server=on,wait=off,path=",
        &sockets.qmp(vm.claim),
        "",
    );
    words.pair("-mon", "chardev=qmp,mode=control");
    words.flag("-pidfile").flag(folder.pid());
    words.flag("-D").flag(folder.log());
    words.flag("-daemonize");
    if let Some(kernel) = kernel {
        words.flag("-kernel").flag(&kernel.kernel);
        words.flag("-initrd").flag(&kernel.initrd);
        words.pair("-append", &kernel.cmdline);
    }
    words.0
}

/// One forwarding rule, as `-netdev` and the monitor have it.
pub(crate) fn rule(forward: Forward) -> String {
    format!(
        "tcp:{}:{}-:{}",
        forward.host.ip(),
        forward.host.port(),
        forward.guest
    )
}

/// The accelerator with its properties. A thread per processor is what QEMU does anyway where guest
/// and host order memory alike; said here, it is an error where it is not.
pub(crate) fn accelerator(name: &str) -> &str {
    match name {
        "tcg" => "tcg,thread=multi",
        other => other,
    }
}

fn cache(config: &crate::options::Config) -> &'static str {
    use crate::options::DiskCache;
    match config.disk_cache {
        DiskCache::Writeback => ",discard=unmap",
        DiskCache::None => ",cache.direct=on,file.cache.direct=on,discard=unmap",
        DiskCache::Unsafe => ",cache.no-flush=on,discard=unmap",
    }
}

#[derive(Default)]
struct Words(Vec<OsString>);

impl Words {
    fn flag(&mut self, word: impl AsRef<OsStr>) -> &mut Self {
        self.0.push(word.as_ref().to_owned());
        self
    }

    fn pair(&mut self, name: &str, value: &str) {
        self.flag(name).flag(value);
    }

    fn path(&mut self, name: &str, before: &str, path: &Path, after: &str) {
        let mut value = OsString::from(before);
        value.push(escaped(path));
        value.push(after);
        self.flag(name).flag(value);
    }
}

/// A path inside a list of properties: QEMU wants commas doubled.
fn escaped(path: &Path) -> OsString {
    let mut bytes = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if *byte == b',' {
            bytes.push(b',');
        }
        bytes.push(*byte);
    }
    OsString::from_vec(bytes)
}

fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use forge_driver::folder::Record;

    use super::*;
    use crate::vm::tests::{spec, vm};

    fn line(home: &str, kernel: Option<&KernelFiles>) -> (Vm, Vec<String>) {
        let vm = vm(&spec());
        let folder = Folder::new(Path::new(home), vm.claim);
        let sockets = Sockets::new(Path::new("/run/user/1000/forge")).expect("short");
        let words = arguments(&vm, &folder, &sockets, kernel, None);
        (
            vm,
            words
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
        )
    }

    fn after<'a>(words: &'a [String], name: &str) -> Vec<&'a str> {
        words
            .windows(2)
            .filter(|pair| pair[0] == name)
            .map(|pair| pair[1].as_str())
            .collect()
    }

    #[test]
    fn the_claim_the_hardware_and_the_forwards_are_on_the_line() {
        let (vm, words) = line("/h", None);
        assert_eq!(after(&words, "-uuid"), [vm.claim.to_string()]);
        assert_eq!(after(&words, "-machine"), ["pc-q35-10.0"]);
        assert_eq!(after(&words, "-accel"), ["tcg,thread=multi"]);
        assert_eq!(after(&words, "-m"), ["1024M"]);
        let netdevs = after(&words, "-netdev");
        assert_eq!(
            netdevs[0],
            "user,id=outer,ipv6=off,hostfwd=tcp:127.133.7.101:2222-:22,hostfwd=tcp:127.133.7.101:2376-:2376,hostfwd=tcp:127.133.7.101:8080-:80"
        );
        assert!(
            netdevs[1]
                .starts_with("dgram,id=inner,local.type=unix,local.path=/run/user/1000/forge/net-")
        );
        assert!(netdevs[1].ends_with("/switch"));
        let devices = after(&words, "-device");
        assert!(devices.contains(
            &format!("virtio-net-pci,netdev=outer,romfile=,mac={}", vm.outer_mac).as_str()
        ));
        assert!(
            !words.iter().any(|word| word.contains("cloud-config")),
            "the seed is a file, never an argument"
        );
    }

    #[test]
    fn a_kernel_is_named_only_when_it_is_given() {
        let files = KernelFiles {
            kernel: "/i/vmlinuz".into(),
            initrd: "/i/initrd".into(),
            cmdline: "root=LABEL=x quiet".into(),
        };
        let (_, words) = line("/h", Some(&files));
        assert_eq!(after(&words, "-append"), ["root=LABEL=x quiet"]);
        let (_, words) = line("/h", None);
        assert!(after(&words, "-kernel").is_empty());
    }

    #[test]
    fn the_words_of_a_stopped_machine_are_those_it_had() {
        let vm = vm(&spec());
        let folder = Folder::new(Path::new("/h"), vm.claim);
        let sockets = Sockets::new(Path::new("/run/f")).expect("short");
        let again = Vm::parse(&serde_json::to_vec(&vm).expect("text")).expect("parses");
        assert_eq!(
            arguments(&vm, &folder, &sockets, None, None),
            arguments(&again, &folder, &sockets, None, None)
        );
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        let (vm, words) = line("/a,b", None);
        let disk = format!("file.filename=/a,,b/{}/disk.qcow2,discard=unmap", vm.claim);
        assert!(
            after(&words, "-blockdev")
                .iter()
                .any(|word| word.ends_with(&disk)),
            "{words:?}"
        );
    }
}
