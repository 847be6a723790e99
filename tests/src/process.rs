//! A child process that can't be forgotten: in a process group of its own, its output in a log file, killed with all
//! that it started when the handle is dropped.
//!
//! The child is reaped only then. Until that its id can't be given to another process, so that signals always reach
//! the right group, even when the child itself is long dead and only its own children are left. Linux only: whether it
//! lives is read from `/proc`.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::clock::Stopwatch;

/// How much of a log is shown when something went wrong.
const TAIL_BYTES: u64 = 4096;
const KILL_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, its output appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let open = || OpenOptions::new().create(true).append(true).open(log);
        let output = open().with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot start {name} ({program})"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is dead, though not yet reaped.
    pub fn has_ended(&self) -> bool {
        // `PID (NAME) STATE …`, where the name may hold anything.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        matches!(state, None | Some('Z' | 'X'))
    }

    /// An error with the end of the log, if it does not run.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.has_ended(), "{} has ended; its log says:\n{}", self.name, self.log_tail());
        Ok(())
    }

    /// `kill -9`, of this process alone: what it started lives on. Returns when it is dead.
    pub fn kill(&self) -> Result<()> {
        let pid = self.child.id().to_string();
        ensure!(signal("KILL", &pid), "cannot kill {}", self.name);
        // Nothing can delay this signal for long.
        ensure!(self.ends_within(KILL_LIMIT), "{} does not die", self.name);
        Ok(())
    }

    /// Asks it to end (`SIGTERM`) and waits at most `patience`; dropping the handle ends what is left. Whether it went
    /// by itself.
    pub fn stop(self, patience: Duration) -> bool {
        signal("TERM", &self.child.id().to_string()) && self.ends_within(patience)
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let watch = Stopwatch::start();
        while !self.has_ended() && watch.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.has_ended()
    }

    pub fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_else(|e| format!("({} cannot be read: {e})", self.log.display()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nobody is left to tell when this fails, and it does so where the group is gone already.
        signal("KILL", &format!("-{}", self.child.id()));
        self.child.wait().ok();
    }
}

/// By the shell's own `kill`: the standard library can send no other signal than `SIGKILL`, and to no group.
fn signal(name: &str, target: &str) -> bool {
    let mut kill = Command::new("sh");
    kill.args(["-c", "kill -s \"$1\" -- \"$2\"", "kill", name, target]).stdin(Stdio::null());
    kill.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &Path) -> Process {
        Process::start("shell", Command::new("sh").args(["-c", script]), &folder.join("log")).unwrap()
    }

    fn wait(done: impl Fn() -> bool) {
        let watch = Stopwatch::start();
        while !done() {
            assert!(watch.elapsed() < Duration::from_secs(20), "waited in vain");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn an_end_is_noticed_and_told_with_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let process = shell("echo out of film; exit 3", folder.path());
        wait(|| process.has_ended());
        let error = process.check().unwrap_err().to_string();
        assert!(error.contains("out of film"), "{error}");
    }

    #[test]
    fn what_a_killed_process_started_dies_with_the_handle() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let process = shell(&format!("sleep 1000 & echo $! > {}; wait", file.display()), folder.path());
        wait(|| std::fs::read_to_string(&file).is_ok_and(|t| t.ends_with('\n')));
        let grandchild: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        process.kill().unwrap();
        assert!(process.has_ended());
        let alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(" Z ")
        };
        assert!(alive());
        drop(process);
        wait(|| !alive());
    }
}
