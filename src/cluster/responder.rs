//! A container image of less than two kilobytes whose only program answers HTTP: what the probe of a
//! published port runs, so that it needs no registry.
//!
//! The program is a static executable without a library, assembled here: open a listening socket; then
//! for ever: accept, read once, send the answer, close. In pseudocode:
//!
//! ```text
//! s = socket(AF_INET, SOCK_STREAM, 0)
//! bind(s, {AF_INET, port, address}, 16) != 0  ->  exit(1)
//! listen(s, 16)                         != 0  ->  exit(1)
//! next:
//! c = accept(s, 0, 0)                    < 0  ->  exit(1)
//! read(c, stack, 4096)         a close with unread data would reset the connection
//! sendto(c, answer, length, MSG_NOSIGNAL, 0, 0)
//! close(c); goto next
//! ```

use std::net::SocketAddrV4;

use forge_driver::{Error, Kind, Result};

/// Processors that the program can be assembled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl Architecture {
    /// The processor that `docker info` names.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] for one that the program cannot be assembled for.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "x86_64" | "amd64" => Ok(Self::X86_64),
            "aarch64" | "arm64" => Ok(Self::Aarch64),
            other => Err(Error::new(
                Kind::Unavailable,
                format!("published ports cannot be probed on processors of type `{other}`"),
            )),
        }
    }

    /// `e_machine` of the ELF header (System V ABI supplements: 62 and 183).
    fn machine(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
        }
    }
}

/// Where the executable is loaded: the traditional address, aligned for any page size up to 64 KiB.
const BASE: u32 = 0x40_0000;
/// The ELF header (64 bytes) and one program header (56), the code right behind them.
const HEADERS: u32 = 120;
/// `struct sockaddr_in`.
const SOCKADDR: u32 = 16;
/// The program's name in the image.
const PROGRAM: &str = "probe";

/// An executable that answers `body` over HTTP at `at`.
#[must_use]
pub fn executable(architecture: Architecture, at: SocketAddrV4, body: &str) -> Vec<u8> {
    let answer = format!(
        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let assemble = match architecture {
        Architecture::X86_64 => x86_64,
        Architecture::Aarch64 => aarch64,
    };
    // The length of the code does not depend on the addresses in it.
    let length = u32_of(assemble(0, 0, 0).len());
    let sockaddr = BASE + HEADERS + length;
    let code = assemble(sockaddr, sockaddr + SOCKADDR, u32_of(answer.len()));

    let mut file = headers(
        architecture,
        u64::from(HEADERS + length + SOCKADDR + u32_of(answer.len())),
    );
    file.extend(code);
    // AF_INET in the processor's order (both are little-endian), port and address in network order.
    file.extend(2_u16.to_le_bytes());
    file.extend(at.port().to_be_bytes());
    file.extend(at.ip().octets());
    file.extend([0; 8]);
    file.extend(answer.into_bytes());
    file
}

/// ELF header and program header (System V ABI, chapters 4 and 5): one segment, the whole file,
/// readable and executable.
fn headers(architecture: Architecture, size: u64) -> Vec<u8> {
    let mut file = Vec::new();
    // Magic; 64-bit, little-endian, version 1, System V.
    file.extend(*b"\x7fELF\x02\x01\x01\x00\0\0\0\0\0\0\0\0");
    file.extend(2_u16.to_le_bytes()); // e_type: executable
    file.extend(architecture.machine().to_le_bytes()); // e_machine
    file.extend(1_u32.to_le_bytes()); // e_version
    file.extend(u64::from(BASE + HEADERS).to_le_bytes()); // e_entry
    file.extend(64_u64.to_le_bytes()); // e_phoff
    file.extend(0_u64.to_le_bytes()); // e_shoff
    file.extend(0_u32.to_le_bytes()); // e_flags
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes()); // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    }
    file.extend(1_u32.to_le_bytes()); // p_type: load
    file.extend(5_u32.to_le_bytes()); // p_flags: read, execute
    for word in [0, u64::from(BASE), u64::from(BASE), size, size, 0x1_0000] {
        file.extend(word.to_le_bytes()); // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    }
    file
}

/// The program for x86-64. System calls: number in eax, arguments in rdi, rsi, rdx, r10, r8, r9
/// (Linux, arch/x86/entry/syscalls/syscall_64.tbl).
fn x86_64(sockaddr: u32, answer: u32, length: u32) -> Vec<u8> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    const EDI: u8 = 0xbf;
    const ESI: u8 = 0xbe;
    const EDX: u8 = 0xba;
    const EAX: u8 = 0xb8;
    // mov register, value
    let set = |register: u8, value: u32| {
        let mut bytes = vec![register];
        bytes.extend(value.to_le_bytes());
        bytes
    };
    let call = |number: u32| [set(EAX, number), SYSCALL.to_vec()].concat();
    let edi_is_listener = vec![0x89, 0xef]; // mov edi, ebp
    let edi_is_connection = vec![0x89, 0xdf]; // mov edi, ebx

    let quit = [set(EDI, 1), call(60)].concat(); // exit(1)
    let over_quit = u8_of(quit.len());
    // Falls through when the result is right: `jump` is the opcode of the jump over `quit`.
    let unless = |jump: u8| [vec![0x85, 0xc0, jump, over_quit], quit.clone()].concat(); // test eax, eax; jump
    let (jz, jns) = (0x74, 0x79);

    let mut code = [
        set(EDI, 2),
        set(ESI, 1),
        set(EDX, 0),
        call(41),         // socket
        vec![0x89, 0xc5], // mov ebp, eax
        edi_is_listener.clone(),
        set(ESI, sockaddr),
        set(EDX, SOCKADDR),
        call(49), // bind
        unless(jz),
        edi_is_listener.clone(),
        set(ESI, 16),
        call(50), // listen
        unless(jz),
        vec![0x48, 0x81, 0xec, 0x00, 0x10, 0x00, 0x00], // sub rsp, 4096
    ]
    .concat();
    let next = code.len();
    code.extend(
        [
            edi_is_listener,
            set(ESI, 0),
            set(EDX, 0),
            call(43), // accept
            unless(jns),
            vec![0x89, 0xc3], // mov ebx, eax
            edi_is_connection.clone(),
            vec![0x48, 0x89, 0xe6], // mov rsi, rsp
            set(EDX, 4096),
            call(0), // read
            edi_is_connection.clone(),
            set(ESI, answer),
            set(EDX, length),
            vec![0x41, 0xba, 0x00, 0x40, 0x00, 0x00], // mov r10d, MSG_NOSIGNAL
            vec![0x45, 0x31, 0xc0],                   // xor r8d, r8d
            vec![0x45, 0x31, 0xc9],                   // xor r9d, r9d
            call(44),                                 // sendto
            edi_is_connection,
            call(3), // close
        ]
        .concat(),
    );
    // jmp next: the distance counts from the end of this instruction of five bytes.
    let back = u32_of(code.len() + 5 - next).wrapping_neg();
    code.push(0xe9);
    code.extend(back.to_le_bytes());
    code
}

/// The program for AArch64. System calls: number in x8, arguments in x0 to x5
/// (Linux, include/uapi/asm-generic/unistd.h); instructions as in the Arm Architecture Reference Manual.
fn aarch64(sockaddr: u32, answer: u32, length: u32) -> Vec<u8> {
    const SVC: u32 = 0xd400_0001;
    // movz x, low; movk x, high, lsl 16
    let set = |register: u32, value: u32| {
        [
            0xd280_0000 | ((value & 0xffff) << 5) | register,
            0xf2a0_0000 | ((value >> 16) << 5) | register,
        ]
    };
    // mov x0, xN
    let first_is = |register: u32| 0xaa00_03e0 | (register << 16);
    let keep_in = |register: u32| 0xaa00_03e0 | register; // mov xN, x0
    let (listener, connection) = (19, 20);

    let mut code: Vec<u32> = Vec::new();
    let call = |code: &mut Vec<u32>, number: u32| {
        code.extend(set(8, number));
        code.push(SVC);
    };
    // Over the five instructions of exit(1), when the result is right.
    let unless = |code: &mut Vec<u32>, jump: u32| {
        code.push(jump | (6 << 5));
        code.extend(set(0, 1));
        call(code, 93);
    };
    let (cbz, tbz_sign) = (0xb400_0000, 0x36f8_0000); // cbz x0; tbz w0, 31

    code.extend(set(0, 2));
    code.extend(set(1, 1));
    code.extend(set(2, 0));
    call(&mut code, 198); // socket
    code.push(keep_in(listener));
    code.extend(set(1, sockaddr));
    code.extend(set(2, SOCKADDR));
    call(&mut code, 200); // bind
    unless(&mut code, cbz);
    code.push(first_is(listener));
    code.extend(set(1, 16));
    call(&mut code, 201); // listen
    unless(&mut code, cbz);
    code.push(0xd140_07ff); // sub sp, sp, 4096
    let next = code.len();
    code.push(first_is(listener));
    code.extend(set(1, 0));
    code.extend(set(2, 0));
    call(&mut code, 202); // accept
    unless(&mut code, tbz_sign);
    code.push(keep_in(connection));
    code.push(0x9100_03e1); // mov x1, sp
    code.extend(set(2, 4096));
    call(&mut code, 63); // read
    code.push(first_is(connection));
    code.extend(set(1, answer));
    code.extend(set(2, length));
    code.extend(set(3, 0x4000)); // MSG_NOSIGNAL
    code.extend(set(4, 0));
    code.extend(set(5, 0));
    call(&mut code, 206); // sendto
    code.push(first_is(connection));
    call(&mut code, 57); // close
    // b next: a distance in instructions, 26 bits.
    let back = u32_of(code.len() - next).wrapping_neg() & 0x03ff_ffff;
    code.push(0x1400_0000 | back);
    code.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// The file system of the image as a tar archive: the program alone.
#[must_use]
pub fn archive(program: &[u8]) -> Vec<u8> {
    // POSIX.1-2017, pax, "ustar Interchange Format".
    let mut header = [0_u8; 512];
    let mut put =
        |offset: usize, text: &[u8]| header[offset..offset + text.len()].copy_from_slice(text);
    put(0, PROGRAM.as_bytes()); // name
    put(100, b"0000755\0"); // mode
    put(108, b"0000000\0"); // uid
    put(116, b"0000000\0"); // gid
    put(124, format!("{:011o}\0", program.len()).as_bytes()); // size
    put(136, b"00000000000\0"); // mtime
    put(148, b"        "); // chksum: spaces while it is computed
    put(156, b"0"); // typeflag: regular file
    put(257, b"ustar\x0000"); // magic, version
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());

    let mut archive = header.to_vec();
    archive.extend(program);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

/// The image's entry point, for `docker import --change`.
pub const ENTRYPOINT: &str = r#"ENTRYPOINT ["/probe"]"#;

fn u32_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn u8_of(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[test]
    fn the_program_answers_again_and_again() {
        use std::io::{Read, Write};
        use std::net::{TcpListener, TcpStream};
        use std::os::unix::fs::PermissionsExt;
        use std::time::{Duration, Instant};

        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = free.local_addr().expect("an address");
        drop(free);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("probe");
        let program = executable(
            Architecture::X86_64,
            SocketAddrV4::new(Ipv4Addr::LOCALHOST, at.port()),
            "it is me",
        );
        std::fs::write(&path, program).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .expect("executable");
        let mut child = std::process::Command::new(&path).spawn().expect("it runs");

        let end = Instant::now() + Duration::from_secs(20);
        let mut answers = Vec::new();
        while answers.len() < 3
            && Instant::now() < end
            && child.try_wait().expect("state").is_none()
        {
            let Ok(mut stream) = TcpStream::connect(at) else {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            if answers.is_empty() {
                // A client that goes away without a word stops nobody.
                drop(stream);
                stream = TcpStream::connect(at).expect("it still accepts");
            }
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("asked");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("answered");
            answers.push(answer);
        }
        let _ = child.kill();
        let _ = child.wait();
        assert_eq!(
            answers,
            ["HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\nit is me"; 3]
        );
    }

    #[test]
    fn headers_say_how_large_the_program_is() {
        for architecture in [Architecture::X86_64, Architecture::Aarch64] {
            let program = executable(
                architecture,
                SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 8080),
                "x",
            );
            assert!(program.len() < 800, "{}", program.len());
            assert_eq!(
                program[96..104],
                u64::try_from(program.len()).expect("small").to_le_bytes()
            );
            assert_eq!(program[18..20], architecture.machine().to_le_bytes());
            assert!(program.ends_with(b"\r\n\r\nx"));
        }
    }

    #[test]
    fn the_archive_is_one_that_tar_reads() {
        let archive = archive(b"program");
        assert_eq!(archive.len() % 512, 0);
        let checksum = std::str::from_utf8(&archive[148..154]).expect("digits");
        let sum: u32 = archive[..512]
            .iter()
            .enumerate()
            .map(|(index, &byte)| {
                if (148..156).contains(&index) {
                    32
                } else {
                    u32::from(byte)
                }
            })
            .sum();
        assert_eq!(u32::from_str_radix(checksum, 8).expect("octal"), sum);
        assert_eq!(&archive[124..136], b"00000000007\0");
        assert_eq!(&archive[512..519], b"program");
    }

    #[test]
    fn other_processors_are_refused() {
        assert_eq!(
            Architecture::parse("arm64").expect("known"),
            Architecture::Aarch64
        );
        assert_eq!(
            Architecture::parse("riscv64").expect_err("unknown").kind(),
            Kind::Unavailable
        );
    }
}
