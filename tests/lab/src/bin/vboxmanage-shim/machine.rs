//! What the shim knows of machines that were started: a folder for each, and a lock that is held while QEMU runs.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::{Result, real};

/// The states that the shim answers for. `saved` is the real VBoxManage's own, which adopts it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    PoweredOff,
    Running,
    Paused,
    Aborted,
}

impl State {
    /// The word of `--machinereadable`.
    pub fn word(self) -> &'static str {
        match self {
            Self::PoweredOff => "poweroff",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Aborted => "aborted",
        }
    }

    /// The word for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::PoweredOff => "powered off",
            other => other.word(),
        }
    }
}

/// The folder of one machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub folder: PathBuf,
}

impl Machine {
    pub fn of(uuid: &str) -> Result<Self> {
        let folder = real::state()?.join("machines").join(uuid);
        Ok(Self { folder })
    }

    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Every machine that was ever started and is still registered.
    pub fn all() -> Result<Vec<Self>> {
        let Ok(entries) = fs::read_dir(real::state()?.join("machines")) else {
            return Ok(Vec::new());
        };
        let folders = entries.flatten().map(|entry| Self::at(&entry.path()));
        Ok(folders.collect())
    }

    pub fn uuid(&self) -> String {
        let name = self.folder.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Where QEMU answers. Its path has to be short (108 bytes, unix(7)); `/run` is the name space's own.
    pub fn socket(&self) -> PathBuf {
        Path::new("/run").join(format!("{}.qmp", self.uuid()))
    }

    /// The lock, taken: whoever holds it may start the machine.
    pub fn lock(&self) -> Result<Option<File>> {
        fs::create_dir_all(&self.folder)?;
        let lock = File::create(self.folder.join("lock"))?;
        // Whoever asks whether the machine lives holds it for a moment.
        for _ in 0..20 {
            match lock.try_lock() {
                Ok(()) => return Ok(Some(lock)),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Whether QEMU or the process that watches over it lives.
    pub fn alive(&self) -> Result<bool> {
        let Ok(lock) = File::open(self.folder.join("lock")) else {
            return Ok(false);
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    /// Waits until nothing of the machine lives.
    pub fn wait(&self, deadline: Duration) -> Result<()> {
        let until = Instant::now() + deadline;
        while self.alive()? {
            if Instant::now() > until {
                return Err("the machine does not end".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What was written down when the machine was started last.
    pub fn record(&self) -> Option<Value> {
        let bytes = fs::read(self.folder.join("record.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub fn save(&self, record: &Value) -> Result<()> {
        let aside = self.folder.join("record.new");
        fs::write(&aside, serde_json::to_vec(record)?)?;
        fs::rename(aside, self.folder.join("record.json"))?;
        Ok(())
    }

    /// The state and since when; nothing when the machine was never started.
    pub fn state(&self) -> Result<Option<(State, String)>> {
        let alive = self.alive()?;
        let Some(record) = self.record() else {
            return Ok(None);
        };
        let state = match record["state"].as_str() {
            Some("running") if alive => State::Running,
            Some("paused") if alive => State::Paused,
            // Whoever had to write down how it ended was killed.
            Some("running" | "paused" | "aborted") => State::Aborted,
            _ => State::PoweredOff,
        };
        let since = record["since"].as_str().unwrap_or_default().to_owned();
        Ok(Some((state, since)))
    }

    pub fn enter(&self, state: State) -> Result<()> {
        let mut record = self.record().unwrap_or_else(|| json!({}));
        record["state"] = state.word().into();
        record["since"] = now().into();
        self.save(&record)
    }

    /// The state, when QEMU runs.
    pub fn running(&self) -> Result<Option<State>> {
        if !self.alive()? {
            return Ok(None);
        }
        Ok(self.state()?.map(|(state, _)| state))
    }

    pub fn name(&self) -> String {
        let record = self.record().unwrap_or_default();
        record["name"].as_str().unwrap_or_default().to_owned()
    }

    /// The media in use: their paths and UUIDs.
    pub fn media(&self) -> Vec<String> {
        let record = self.record().unwrap_or_default();
        let media = record["media"].as_array().cloned().unwrap_or_default();
        let words = media.iter().filter_map(|word| word.as_str());
        words.map(str::to_owned).collect()
    }
}

/// The moment as VirtualBox writes it: `2026-11-21T19:48:20.685000000`.
fn now() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = since.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}",
        rest / 3600,
        rest / 60 % 60,
        rest % 60,
        since.subsec_millis() * 1_000_000
    )
}

/// The date of a day counted from 1970-01-01 (the proleptic Gregorian calendar, in years that begin in March).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let of_month = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 {
        (year, month + 3)
    } else {
        (year + 1, month - 9)
    };
    (year + era * 400, month, of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(20_453), (2025, 12, 31));
    }
}
