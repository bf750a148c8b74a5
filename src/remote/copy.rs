//! Files to and from machines over this program's own connections, where there is no scp: with `cat`, `tar` and a POSIX
//! shell there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::{Context, Error, Kind, Result, atomic, process};
use russh::ChannelMsg;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::exec::{STDERR, lost};
use super::ssh::SshGuest;
use super::{Guest, OUTPUT_LIMIT};
use crate::playbook::quote;

/// Files are read in pieces of this size …
const PIECE: usize = 128 << 10;
/// … and so many are on their way at most.
const PIECES: usize = 16;
/// What a machine says of a path, it says within this time.
const LOOK: Duration = Duration::from_secs(60);

/// A side of a copy.
pub enum Place {
    /// A path of this host.
    Here(PathBuf),
    /// A path of a machine.
    There(SshGuest, String),
}

/// What is copied.
struct Origin {
    folder: bool,
    /// Its name where it comes into a folder.
    name: String,
    /// Its permission bits.
    mode: u32,
}

/// A stream of bytes that ends with an error or well.
type Pieces = mpsc::Receiver<Result<Vec<u8>>>;

/// Copies a file, or with `recursive` a folder: into the target where that is a folder, else to it, as scp(1) does.
/// Symbolic links are followed.
///
/// # Errors
/// What either side reports. What has arrived until then stays.
pub async fn copy(from: &Place, to: &Place, recursive: bool) -> Result<()> {
    let origin = from.look().await?;
    if origin.folder && !recursive {
        return Err(
            Error::new(Kind::Usage, format!("`{}` is a folder", from.shown()))
                .hint("`-r` copies folders"),
        );
    }
    let pieces = from.pieces(&origin);
    let failed = || format!("failed to copy `{}` to `{}`", from.shown(), to.shown());
    match to {
        Place::Here(path) => written(pieces, path.clone(), origin).await,
        Place::There(guest, path) => sent(pieces, guest, &receiver(path, &origin)).await,
    }
    .map_err(|error| error.context(failed()))
}

impl Place {
    fn shown(&self) -> String {
        match self {
            Self::Here(path) => path.display().to_string(),
            Self::There(_, path) => path.clone(),
        }
    }

    async fn look(&self) -> Result<Origin> {
        match self {
            Self::Here(path) => {
                let failed = || format!("failed to read `{}`", path.display());
                let found = fs::metadata(path).or_fail(Kind::NotFound, failed)?;
                let name = match path.file_name() {
                    Some(name) => name.to_owned(),
                    None => {
                        let real = fs::canonicalize(path).or_fail(Kind::Io, failed)?;
                        real.file_name().unwrap_or_default().to_owned()
                    }
                };
                Ok(Origin {
                    folder: found.is_dir(),
                    name: name.to_string_lossy().into_owned(),
                    mode: found.permissions().mode() & 0o777,
                })
            }
            Self::There(guest, path) => {
                let script = sh(&format!(
                    "p={}; [ ! -d \"$p\" ] || {{ cd \"$p\" && echo folder && pwd; exit; }}; \
                     [ -r \"$p\" ] || {{ echo \"no file that can be read\" >&2; exit 1; }}; \
                     stat -L -c %a \"$p\" 2>/dev/null || echo 644; basename \"$p\"",
                    remote(path)
                ));
                let output = guest.exec(&script, b"", LOOK).await?;
                if output.status != 0 {
                    return Err(Error::new(
                        Kind::NotFound,
                        format!("failed to read `{path}` of the machine"),
                    )
                    .because(process::tail(&output.error_text(), 3)));
                }
                let text = output.text();
                let (what, name) = text.trim_end().split_once('\n').unwrap_or(("644", "file"));
                let name = name.rsplit('/').next().unwrap_or_default();
                Ok(Origin {
                    folder: what == "folder",
                    name: name.to_owned(),
                    mode: u32::from_str_radix(what, 8).unwrap_or(0o644) & 0o777,
                })
            }
        }
    }

    /// The contents: of a file as they are, of a folder as an archive of what is in it.
    fn pieces(&self, origin: &Origin) -> Pieces {
        let (sender, receiver) = mpsc::channel(PIECES);
        match self {
            Self::Here(path) => {
                let (path, folder) = (path.clone(), origin.folder);
                spawn_blocking(move || {
                    let failed = || format!("failed to read `{}`", path.display());
                    let mut pipe = Pipe(sender.clone());
                    let done = if folder {
                        let mut archive =
                            tar::Builder::new(io::BufWriter::with_capacity(PIECE, pipe));
                        archive
                            .append_dir_all(".", &path)
                            .and_then(|()| archive.into_inner()?.flush())
                    } else {
                        File::open(&path).and_then(|file| pour(file, &mut pipe))
                    };
                    if let Err(error) = done.or_fail(Kind::Io, failed) {
                        // Whoever reads the pieces may have gone, with an error of its own.
                        let _ = sender.blocking_send(Err(error));
                    }
                });
            }
            Self::There(guest, path) => {
                let script = sh(&if origin.folder {
                    format!("cd {} && exec tar -chf - .", remote(path))
                } else {
                    format!("exec cat <{}", remote(path))
                });
                let guest = guest.clone();
                tokio::spawn(async move {
                    if let Err(error) = fetch(&guest, &script, &sender).await {
                        let _ = sender.send(Err(error)).await;
                    }
                });
            }
        }
        receiver
    }
}

/// Hands bytes over as pieces.
struct Pipe(mpsc::Sender<Result<Vec<u8>>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::ErrorKind::BrokenPipe;
        self.0.blocking_send(Ok(bytes.to_vec())).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pour(mut file: File, pipe: &mut Pipe) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => pipe.write_all(&buffer[..count])?,
        }
    }
}

/// Takes pieces as bytes; an error among them is this reader's.
struct Taker {
    pieces: Pieces,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Taker {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => (self.piece, self.at) = (piece, 0),
                Some(Err(error)) => return Err(io::Error::other(error.line())),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

async fn written(pieces: Pieces, path: PathBuf, origin: Origin) -> Result<()> {
    let target = if path.is_dir() {
        path.join(&origin.name)
    } else {
        path
    };
    let failed = format!("failed to write `{}`", target.display());
    let taker = Taker {
        pieces,
        piece: Vec::new(),
        at: 0,
    };
    let work = spawn_blocking(move || {
        if origin.folder {
            unpack(taker, &target)
        } else {
            fill(taker, &target, origin.mode)
        }
    });
    work.await
        .or_fail(Kind::Failed, || failed.clone())?
        .map_err(|error| atomic::full(error, &failed))
}

fn fill(mut taker: Taker, target: &Path, mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    let mut file = options.open(target)?;
    // A piece is written at once: there is nothing to gain from another buffer.
    loop {
        match taker.pieces.blocking_recv() {
            None => return file.flush(),
            Some(Ok(piece)) => file.write_all(&piece)?,
            Some(Err(error)) => return Err(io::Error::other(error.line())),
        }
    }
}

/// Nothing of an archive comes outside the target, whatever its entries are called.
fn unpack(mut taker: Taker, target: &Path) -> io::Result<()> {
    match fs::create_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let mut archive = tar::Archive::new(&mut taker);
    for entry in archive.entries()? {
        entry?.unpack_in(target)?;
    }
    // What follows the archive's end is padding; an error behind it is one all the same.
    io::copy(&mut taker, &mut io::sink()).map(|_| ())
}

/// The script that takes a file, or the archive of a folder, on its standard input.
fn receiver(path: &str, origin: &Origin) -> String {
    let into = format!(
        "t={}; [ ! -d \"$t\" ] || t=$t/{}; ",
        remote(path),
        quote(&origin.name)
    );
    sh(&if origin.folder {
        format!(
            "{into}mkdir \"$t\" 2>/dev/null || [ -d \"$t\" ] || mkdir \"$t\" || exit; exec tar -xof - -C \"$t\""
        )
    } else {
        // A new file gets the permissions of the old one, less those that the umask there takes.
        let run = if origin.mode & 0o111 == 0 {
            ":"
        } else {
            "chmod +x \"$t\""
        };
        format!(
            "{into}new=; [ -e \"$t\" ] || new=1; umask \"$(printf %o $(( $(umask) | 0{:o} )))\"; \
             cat >\"$t\" || exit; [ -z \"$new\" ] || {run}",
            0o777 & !origin.mode
        )
    })
}

/// A script as a line for whatever shell the user has.
fn sh(script: &str) -> String {
    format!("exec sh -c {}", quote(script))
}

/// A path of a machine as a word of a script; relative ones begin at the user's home.
fn remote(path: &str) -> String {
    let from_home = |rest: &str| match rest {
        "" => ".".to_owned(),
        rest => quote(&format!("./{rest}")),
    };
    match path {
        "~" => ".".to_owned(),
        path if path.starts_with('/') => quote(path),
        path => from_home(
            path.strip_prefix("~/")
                .unwrap_or(path)
                .trim_start_matches('/'),
        ),
    }
}

/// Runs a command and hands on what it writes.
async fn fetch(
    guest: &SshGuest,
    command: &str,
    sender: &mpsc::Sender<Result<Vec<u8>>>,
) -> Result<()> {
    let (mut reader, writer) = guest.run(command).await?;
    // There is nothing to say to it; where that cannot be said, the reader tells why.
    let _ = writer.eof().await;
    let (mut status, mut said) = (None, Vec::new());
    while let Some(message) = reader.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                if sender.send(Ok(Vec::from(data))).await.is_err() {
                    // Whoever writes them has an error of its own.
                    let _ = writer.close().await;
                    return Ok(());
                }
            }
            message => note(message, &mut status, &mut said),
        }
    }
    ended(status, &said)
}

/// Runs a command and feeds it.
async fn sent(mut pieces: Pieces, guest: &SshGuest, command: &str) -> Result<()> {
    let (mut reader, writer) = guest.run(command).await?;
    let feeding = async {
        while let Some(piece) = pieces.recv().await {
            if writer.data_bytes(piece?).await.is_err() {
                // Its status says why it reads no more.
                return Ok(());
            }
        }
        let _ = writer.eof().await;
        Ok(())
    };
    let listening = async {
        let (mut status, mut said) = (None, Vec::new());
        while let Some(message) = reader.wait().await {
            note(message, &mut status, &mut said);
        }
        (status, said)
    };
    tokio::pin!(listening);
    let fed = tokio::select! {
        biased;
        // It ended before it had all: what it said is the reason.
        (status, said) = &mut listening => return ended(status, &said),
        fed = feeding => fed,
    };
    // Half a file is no file: without the end of its input the command knows of none.
    fed?;
    let (status, said) = listening.await;
    ended(status, &said)
}

fn note(message: ChannelMsg, status: &mut Option<u32>, said: &mut Vec<u8>) {
    match message {
        ChannelMsg::ExtendedData { data, ext: STDERR } => {
            let room = OUTPUT_LIMIT.saturating_sub(said.len()).min(data.len());
            said.extend_from_slice(&data[..room]);
        }
        ChannelMsg::ExitStatus { exit_status } => *status = Some(exit_status),
        _ => {}
    }
}

fn ended(status: Option<u32>, said: &[u8]) -> Result<()> {
    let failed = |kind| Error::new(kind, "the machine's side ended early");
    match status {
        Some(0) => Ok(()),
        Some(code) => {
            let said = process::tail(&String::from_utf8_lossy(said), 3);
            Err(failed(Kind::Failed).because(match said.as_str() {
                "" => format!("exit code {code}"),
                said => said.to_owned(),
            }))
        }
        None => Err(failed(Kind::Unavailable).because(lost(russh::Error::Disconnect))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_machine_are_words_and_begin_at_home() {
        for (path, word) in [
            ("", "."),
            ("~", "."),
            ("~/", "."),
            ("a b", "'./a b'"),
            ("~/a", "./a"),
            ("-x", "./-x"),
            ("/etc/x", "/etc/x"),
            ("/a'$(b)", r"'/a'\''$(b)'"),
        ] {
            assert_eq!(remote(path), word, "{path}");
        }
    }
}
