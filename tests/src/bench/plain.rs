//! What this machine does without any of our programs: reading, writing and copying files in order, loopback.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

/// Bytes of one read or write of a file.
const CHUNK: usize = 1 << 20;
/// Chunks that [`copy`] reads ahead.
const AHEAD: usize = 8;
/// Bytes of one read or write of a socket.
const SOCKET_CHUNK: usize = 256 << 10;

/// The files of a folder by name.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut all: Vec<PathBuf> = list.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    all.retain(|path| path.is_file());
    all.sort();
    Ok(all)
}

/// Makes the kernel forget what it holds of the files, so that the next read comes from the disk.
pub fn forget(files: &[PathBuf]) -> Result<()> {
    for path in files {
        let file = File::open(path)?;
        // Only what is on the disk can be forgotten.
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// Bytes a second of reading the files one after the other.
pub fn read(files: &[PathBuf]) -> Result<f64> {
    let mut chunk = vec![0; CHUNK];
    let (begun, mut bytes) = (Instant::now(), 0);
    for path in files {
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                n => bytes += n,
            }
        }
    }
    Ok(bytes as f64 / begun.elapsed().as_secs_f64())
}

/// Bytes a second of writing a file that is synced after every `group` bytes, as a log's must be. The file is allocated
/// before the clock starts, and removed.
pub fn write(path: &Path, bytes: u64, group: u64) -> Result<f64> {
    let mut file = allocated(path, bytes)?;
    // Noise, in case the disk is clever about zeros.
    let chunk: Vec<u8> =
        (0..CHUNK as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let (begun, mut written, mut synced) = (Instant::now(), 0, 0);
    while written < bytes {
        file.write_all(&chunk)?;
        written += CHUNK as u64;
        if written - synced >= group || written >= bytes {
            file.sync_data()?;
            synced = written;
        }
    }
    let rate = written as f64 / begun.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    Ok(rate)
}

fn allocated(path: &Path, bytes: u64) -> Result<File> {
    let file = File::create(path)?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    file.sync_all()?;
    Ok(file)
}

/// Bytes a second of reading the files and writing them, as [`write`] does, at the same time.
pub fn copy(files: &[PathBuf], path: &Path, group: u64) -> Result<f64> {
    let bytes = files.iter().map(|f| Ok(fs::metadata(f)?.len())).sum::<Result<u64>>()?;
    let mut file = allocated(path, bytes)?;
    let (chunks, taken) = mpsc::sync_channel(AHEAD);
    let begun = Instant::now();
    let rate = thread::scope(|scope| -> Result<f64> {
        let reader = scope.spawn(move || -> Result<()> {
            for path in files {
                let mut file = File::open(path)?;
                loop {
                    let mut chunk = vec![0; CHUNK];
                    let n = file.read(&mut chunk)?;
                    chunk.truncate(n);
                    // The writer is gone only when it has failed, and says so itself.
                    if n == 0 || chunks.send(chunk).is_err() {
                        break;
                    }
                }
            }
            Ok(())
        });
        let (mut written, mut synced) = (0, 0);
        for chunk in taken {
            file.write_all(&chunk)?;
            written += chunk.len() as u64;
            if written - synced >= group {
                file.sync_data()?;
                synced = written;
            }
        }
        file.sync_data()?;
        reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        Ok(written as f64 / begun.elapsed().as_secs_f64())
    })?;
    fs::remove_file(path)?;
    Ok(rate)
}

/// Bytes a second of one TCP connection over loopback, from one thread to another.
pub fn loopback(bytes: u64) -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let begun = Instant::now();
    let sender = thread::spawn(move || -> Result<()> {
        let mut out = TcpStream::connect(address)?;
        let chunk = vec![7; SOCKET_CHUNK];
        for _ in 0..bytes.div_ceil(SOCKET_CHUNK as u64) {
            out.write_all(&chunk)?;
        }
        Ok(())
    });
    let (mut incoming, _) = listener.accept()?;
    let (mut chunk, mut received) = (vec![0; SOCKET_CHUNK], 0);
    loop {
        match incoming.read(&mut chunk)? {
            0 => break,
            n => received += n,
        }
    }
    sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    Ok(received as f64 / begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_positive() -> Result<()> {
        let folder = tempfile::tempdir()?;
        assert!(write(&folder.path().join("x"), 3 << 20, 1 << 20)? > 0.0);
        fs::write(folder.path().join("y"), [0; 1000])?;
        let all = files(folder.path())?;
        assert_eq!(all.len(), 1, "what was written is removed");
        forget(&all)?;
        assert!(read(&all)? > 0.0);
        assert!(copy(&all, &folder.path().join("z"), 1 << 20)? > 0.0);
        assert!(loopback(1 << 20)? > 0.0);
        Ok(())
    }
}
