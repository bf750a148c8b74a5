//! QEMU's machine protocol: one connection for one call.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;

const ANSWER: Duration = Duration::from_secs(20);
/// A saved state of a few gigabytes on a slow disk.
const JOB: Duration = Duration::from_secs(120);

/// An open connection.
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    pub fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut qmp = Self {
            reader: BufReader::new(stream),
        };
        qmp.read()?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err("QEMU hung up".into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// What QEMU returns for a command.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.reader
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut answer = self.read()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}").into());
            }
        }
    }

    /// What QEMU's monitor for people says.
    pub fn monitor(&mut self, line: &str) -> Result<String> {
        let said = self.execute("human-monitor-command", &json!({ "command-line": line }))?;
        Ok(said.as_str().unwrap_or_default().trim().to_owned())
    }

    /// Runs a job to its end.
    pub fn job(&mut self, command: &str, mut arguments: Value) -> Result<()> {
        arguments["job-id"] = "job".into();
        self.execute(command, &arguments)?;
        let until = Instant::now() + JOB;
        loop {
            let jobs = self.execute("query-jobs", &json!({}))?;
            let ours = jobs
                .as_array()
                .and_then(|all| all.iter().find(|one| one["id"] == "job").cloned());
            let Some(ours) = ours else { return Ok(()) };
            if ours["status"] == "concluded" {
                self.execute("job-dismiss", &json!({ "id": "job" }))?;
                return match ours["error"].as_str() {
                    Some(error) => Err(format!("{command}: {error}").into()),
                    None => Ok(()),
                };
            }
            if Instant::now() > until {
                return Err(format!("{command} does not end").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
