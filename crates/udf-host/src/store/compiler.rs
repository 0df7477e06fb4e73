//! Running the compiler program: a short life, bounded memory and time, its words for an error.

use super::StoreError;
use crate::{
    error::bounded,
    limits::{COMPILER_MEMORY_BYTES, COMPILER_TIME, COMPILER_WORDS_BYTES_MAX},
};
use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The program's name.
const NAME: &str = "tidegate-module-compiler";
/// Its exit code for a module that it refuses.
const REFUSED: i32 = 1;
/// How often its end is looked for.
const POLL: Duration = Duration::from_millis(5);
/// What it gets beyond its own time limit, which it keeps itself.
const GRACE: Duration = Duration::from_secs(2);

/// Where the compiler is and what it may use.
#[derive(Debug, Clone)]
pub struct CompilerProgram {
    /// The program.
    pub program: PathBuf,
    /// Its address space.
    pub memory_bytes: u64,
    /// Its time.
    pub time: Duration,
}

impl CompilerProgram {
    /// A program at a path, with the default limits.
    pub fn at(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), memory_bytes: COMPILER_MEMORY_BYTES, time: COMPILER_TIME }
    }

    /// The program in the folder of the running one, with the default limits.
    pub fn beside_current_exe() -> io::Result<Self> {
        Ok(Self::at(std::env::current_exe()?.with_file_name(NAME)))
    }

    /// Compiles one file into another.
    pub(super) fn run(&self, component: &Path, artifact: &Path) -> Result<(), StoreError> {
        let failed = |source| StoreError::Io { what: format!("running {}", self.program.display()), source };
        let mut child = Command::new(&self.program)
            .arg("--in")
            .arg(component)
            .arg("--out")
            .arg(artifact)
            .args(["--memory-bytes", &self.memory_bytes.to_string()])
            .args(["--seconds", &self.time.as_secs().max(1).to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let status = wait(&mut child, self.time + GRACE).map_err(failed)?;
        let words = words(&mut child);
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) if status.code() == Some(REFUSED) => Err(StoreError::Refused(words)),
            Some(status) => Err(StoreError::Compiler(format!("{status}: {words}"))),
            None => Err(StoreError::Compiler(format!("stopped after {} s", (self.time + GRACE).as_secs()))),
        }
    }
}

/// The end of the child, or none when it had to be killed.
fn wait(child: &mut Child, time: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + time;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// What it said. It says one line, which fits the pipe; a program that says more is stopped at its time.
fn words(child: &mut Child) -> String {
    let mut bytes = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // Without its words the error still says how it ended.
        let _ = stderr.take(COMPILER_WORDS_BYTES_MAX as u64).read_to_end(&mut bytes);
    }
    bounded(String::from_utf8_lossy(&bytes).trim(), COMPILER_WORDS_BYTES_MAX)
}
