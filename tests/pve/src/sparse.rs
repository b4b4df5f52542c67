//! Files whose zeros are holes: a medium of gigabytes is mostly padding, and costs no space once it is
//! stored.

use std::io;
use std::io::SeekFrom;
use std::path::Path;

use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

/// How many bytes become a hole where all of them are zero.
const BLOCK: usize = 1 << 20;

/// What a block without data is.
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A new file, written from its beginning to its end.
pub(crate) struct SparseFile {
    file: File,
    block: Vec<u8>,
}

impl SparseFile {
    /// Creates the file, or empties it.
    pub(crate) async fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::create(path).await?, block: Vec::with_capacity(BLOCK) })
    }

    pub(crate) async fn write_all(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let (now, rest) = data.split_at(data.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            data = rest;
            if self.block.len() == BLOCK {
                self.write_block().await?;
            }
        }
        Ok(())
    }

    /// Copies so many bytes, or what there is.
    pub(crate) async fn copy(&mut self, from: &mut File, bytes: u64) -> io::Result<()> {
        let mut from = from.take(bytes);
        let mut piece = vec![0; BLOCK];
        loop {
            match from.read(&mut piece).await? {
                0 => return Ok(()),
                read => self.write_all(&piece[..read]).await?,
            }
        }
    }

    /// Writes out what has been given so far.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.write_block().await?;
        let end = self.file.stream_position().await?;
        self.file.set_len(end).await
    }

    async fn write_block(&mut self) -> io::Result<()> {
        if self.block == ZEROS[..self.block.len()] {
            let length = i64::try_from(self.block.len()).expect("a block's length");
            self.file.seek(SeekFrom::Current(length)).await?;
        } else {
            self.file.write_all(&self.block).await?;
            self.file.flush().await?;
        }
        self.block.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[tokio::test]
    async fn zeros_take_no_space_and_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("medium.iso");
        let mut content = vec![0; 5 * BLOCK + 7];
        content[BLOCK + 3] = 1;
        content[2 * BLOCK..3 * BLOCK].fill(2);

        let mut file = SparseFile::create(&path).await.unwrap();
        for piece in content.chunks(300_001) {
            file.write_all(piece).await.unwrap();
        }
        file.flush().await.unwrap();
        let mut copy = SparseFile::create(&folder.path().join("copy.iso")).await.unwrap();
        let mut source = File::open(&path).await.unwrap();
        copy.copy(&mut source, BLOCK as u64 + 1).await.unwrap();
        copy.flush().await.unwrap();
        copy.copy(&mut source, u64::MAX).await.unwrap();
        copy.flush().await.unwrap();

        for name in ["medium.iso", "copy.iso"] {
            let path = folder.path().join(name);
            assert!(std::fs::read(&path).unwrap() == content, "{name} is another");
            assert!(path.metadata().unwrap().blocks() * 512 < 3 * BLOCK as u64 + 8192, "{name} has no holes");
        }
    }
}
