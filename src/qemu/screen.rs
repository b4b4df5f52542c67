//! Turns the picture that an older QEMU gives into a PNG.

use std::io::Write;

/// Returns the width, the height and the pixels of a binary PPM with one byte a colour.
pub(super) fn parse_ppm(bytes: &[u8]) -> Option<(u32, u32, &[u8])> {
    let mut rest = bytes;
    let mut word = || {
        let start = rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
        let length = rest[start..].iter().position(u8::is_ascii_whitespace)?;
        let (word, tail) = rest[start..].split_at(length);
        // One byte of white space ends a word; after the last one come the pixels.
        rest = &tail[1..];
        std::str::from_utf8(word).ok()
    };
    if word()? != "P6" {
        return None;
    }
    let (width, height): (u32, u32) = (word()?.parse().ok()?, word()?.parse().ok()?);
    if word()? != "255" {
        return None;
    }
    let size = (width as usize).checked_mul(height as usize)?.checked_mul(3)?;
    (rest.len() >= size).then(|| (width, height, &rest[..size]))
}

/// Writes 24-bit pixels as a PNG.
pub(super) fn write_png(
    target: impl Write,
    width: u32,
    height: u32,
    pixels: &[u8],
) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(target, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_survives() {
        let ppm = b"P6\n2 1\n255\n\nabcde";
        let (width, height, pixels) = parse_ppm(ppm).unwrap();
        assert_eq!((width, height, pixels), (2, 1, b"\nabcde".as_slice()));
        let mut file = Vec::new();
        write_png(&mut file, width, height, pixels).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut back = vec![0; 6];
        reader.next_frame(&mut back).unwrap();
        assert_eq!(back, pixels);
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for bad in [&b""[..], b"P5\n1 1\n255\nabc", b"P6\n1 1\n255\nab", b"P6\n1 1\n65535\nabc", b"P6\n1"] {
            assert_eq!(parse_ppm(bad), None, "{bad:?}");
        }
    }
}
