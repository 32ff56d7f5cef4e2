//! Streams in the LZ4 frame format, which `lz4 -d` reads too. A crate of its own for one reason: the library is generic,
//! so its code is compiled where it is used, and in a debug build of xtask it would be ten times slower. `Cargo.toml` of
//! the workspace optimises this crate. Used by `base/packed`.

use lz4_flex::frame::{BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use std::fs::File;
use std::io::{Error, Read, Result, Write};

/// Compresses what is written to it into a file.
pub struct Writer(FrameEncoder<File>);

impl Writer {
    /// Compresses into this file. The frame has a checksum of its content, so that a reader finds every change.
    pub fn new(file: File) -> Self {
        let info = FrameInfo::new().block_size(BlockSize::Max256KB).content_checksum(true);
        Self(FrameEncoder::with_frame_info(info, file))
    }

    /// Writes the end of the frame. What has no end is refused by the reader.
    pub fn finish(self) -> Result<File> {
        self.0.finish().map_err(Error::from)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

/// Reads what a `Writer` has written. A frame that was altered, or has no end, is an error.
pub struct Reader<R: Read>(FrameDecoder<R>);

impl<R: Read> Reader<R> {
    /// Reads a frame from here.
    pub fn new(from: R) -> Self {
        Self(FrameDecoder::new(from))
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        self.0.read(into)
    }
}
