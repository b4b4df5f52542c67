//! As much of a VNC client as a picture of the screen needs (RFC 6143).
//!
//! ```text
//! version ─► security: none, or VNC's DES challenge ─► init: size, name
//!         ─► 32-bit pixels, raw encoding, "all of it please" ─► rectangles until every pixel is there
//! ```

use std::io;

use des::Des;
use des::cipher::{BlockEncrypt, KeyInit};

/// The largest screen that is taken, in pixels.
const PIXELS_MAX: usize = 64 * 1024 * 1024;

/// The largest text that a server may send, in bytes.
const TEXT_MAX: u32 = 1024 * 1024;

const ENCODING_RAW: i32 = 0;
const ENCODING_DESKTOP_SIZE: i32 = -223;

/// A way to exchange bytes.
pub(super) trait Channel: Send {
    /// Sends bytes.
    fn send(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Returns the next bytes, at least one.
    fn receive(&mut self) -> impl Future<Output = io::Result<Vec<u8>>> + Send;
}

/// A picture of a screen.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    /// Its width in pixels.
    pub width: u32,
    /// Its height in pixels.
    pub height: u32,
    /// Its pixels, line by line, each as red, green, blue.
    pub pixels: Vec<u8>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

impl Picture {
    /// Returns the picture as a PNG file.
    ///
    /// # Panics
    /// When [`Self::pixels`] are not three bytes for each pixel.
    #[must_use]
    pub fn png(&self) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&self.pixels));
        written.expect("a whole picture goes into a vector");
        file
    }
}

/// Takes a picture of the screen behind a channel.
pub(super) async fn picture(channel: &mut impl Channel, password: &str) -> io::Result<Picture> {
    let mut link = Link { channel, buffer: Vec::new() };
    link.handshake(password).await?;
    let mut screen = link.initialise().await?;
    link.ask_for_all(&screen).await?;
    while screen.missing > 0 {
        match link.take(1).await?[0] {
            0 => {
                if link.update(&mut screen).await? {
                    link.ask_for_all(&screen).await?;
                }
            }
            1 => {
                let colours =
                    u16::from_be_bytes(link.array::<5>().await?[3..].try_into().expect("two bytes"));
                link.take(usize::from(colours) * 6).await?;
            }
            2 => {}
            3 => {
                link.take(3).await?;
                link.text().await?;
            }
            other => return Err(bad(format!("the message {other} is unknown"))),
        }
    }
    Ok(screen.picture)
}

struct Link<'a, C> {
    channel: &'a mut C,
    buffer: Vec<u8>,
}

/// The picture while it comes.
struct Screen {
    picture: Picture,
    there: Vec<bool>,
    missing: usize,
}

impl Screen {
    fn new(width: u16, height: u16) -> io::Result<Self> {
        let count = usize::from(width) * usize::from(height);
        if count == 0 || count > PIXELS_MAX {
            return Err(bad(format!("a screen of {width} x {height} pixels")));
        }
        let picture = Picture { width: width.into(), height: height.into(), pixels: vec![0; count * 3] };
        Ok(Self { picture, there: vec![false; count], missing: count })
    }

    /// Takes pixels of 32 bits, as blue, green, red, nothing.
    fn paint(&mut self, [x, y, width, height]: [usize; 4], pixels: &[u8]) -> io::Result<()> {
        let (across, down) = (self.picture.width as usize, self.picture.height as usize);
        if x + width > across || y + height > down {
            return Err(bad("a rectangle is larger than the screen"));
        }
        for (index, pixel) in pixels.chunks_exact(4).enumerate() {
            let at = (y + index / width) * across + x + index % width;
            self.picture.pixels[at * 3..][..3].copy_from_slice(&[pixel[2], pixel[1], pixel[0]]);
            self.missing -= usize::from(!std::mem::replace(&mut self.there[at], true));
        }
        Ok(())
    }
}

impl<C: Channel> Link<'_, C> {
    async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            let more = self.channel.receive().await?;
            self.buffer.extend(more);
        }
        let rest = self.buffer.split_off(count);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    async fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        Ok(self.take(N).await?.try_into().expect("so many were taken"))
    }

    async fn text(&mut self) -> io::Result<String> {
        let length = u32::from_be_bytes(self.array().await?);
        if length > TEXT_MAX {
            return Err(bad(format!("a text of {length} bytes")));
        }
        Ok(String::from_utf8_lossy(&self.take(length as usize).await?).into_owned())
    }

    async fn handshake(&mut self, password: &str) -> io::Result<()> {
        let version: [u8; 12] = self.array().await?;
        if !version.starts_with(b"RFB 003.008") {
            return Err(bad(format!(
                "it is no VNC server of version 3.8: {}",
                String::from_utf8_lossy(&version)
            )));
        }
        self.channel.send(b"RFB 003.008\n").await?;
        let [count] = self.array().await?;
        let kinds = self.take(count.into()).await?;
        if count == 0 {
            return Err(bad(format!("the VNC server refuses: {}", self.text().await?)));
        }
        if kinds.contains(&2) {
            self.channel.send(&[2]).await?;
            let challenge = self.array().await?;
            self.channel.send(&respond(password, challenge)).await?;
        } else if kinds.contains(&1) {
            self.channel.send(&[1]).await?;
        } else {
            return Err(bad(format!("the VNC server offers only the security types {kinds:?}")));
        }
        match u32::from_be_bytes(self.array().await?) {
            0 => Ok(()),
            _ => Err(bad(format!("the VNC server does not let forge in: {}", self.text().await?))),
        }
    }

    async fn initialise(&mut self) -> io::Result<Screen> {
        // Shared: others may look at the console, too.
        self.channel.send(&[1]).await?;
        let [w1, w2, h1, h2] = self.array().await?;
        let _format: [u8; 16] = self.array().await?;
        self.text().await?;
        let format = [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
        self.channel.send(&[[0, 0, 0, 0].as_slice(), &format].concat()).await?;
        let encodings = [[2, 0, 0, 2], ENCODING_RAW.to_be_bytes(), ENCODING_DESKTOP_SIZE.to_be_bytes()];
        self.channel.send(&encodings.concat()).await?;
        Screen::new(u16::from_be_bytes([w1, w2]), u16::from_be_bytes([h1, h2]))
    }

    async fn ask_for_all(&mut self, screen: &Screen) -> io::Result<()> {
        let mut ask = vec![3, 0, 0, 0, 0, 0];
        ask.extend((screen.picture.width as u16).to_be_bytes());
        ask.extend((screen.picture.height as u16).to_be_bytes());
        self.channel.send(&ask).await
    }

    /// Takes an update; says whether the screen has another size now and must be asked for again.
    async fn update(&mut self, screen: &mut Screen) -> io::Result<bool> {
        let [_, high, low] = self.array().await?;
        let mut resized = false;
        for _ in 0..u16::from_be_bytes([high, low]) {
            let [x1, x2, y1, y2, w1, w2, h1, h2, e @ ..]: [u8; 12] = self.array().await?;
            let [x, y, width, height] = [[x1, x2], [y1, y2], [w1, w2], [h1, h2]].map(u16::from_be_bytes);
            match i32::from_be_bytes(e) {
                ENCODING_DESKTOP_SIZE => {
                    *screen = Screen::new(width, height)?;
                    resized = true;
                }
                ENCODING_RAW => {
                    let place = [x, y, width, height].map(usize::from);
                    if place[2] * place[3] > PIXELS_MAX {
                        return Err(bad("a rectangle is too large"));
                    }
                    let pixels = self.take(place[2] * place[3] * 4).await?;
                    screen.paint(place, &pixels)?;
                }
                other => return Err(bad(format!("the encoding {other} was not asked for"))),
            }
        }
        Ok(resized)
    }
}

/// Returns the response to a VNC challenge: DES with the password, each of its bytes turned around.
fn respond(password: &str, mut challenge: [u8; 16]) -> [u8; 16] {
    let mut key = [0; 8];
    for (key, byte) in key.iter_mut().zip(password.bytes()) {
        *key = byte.reverse_bits();
    }
    let cipher = Des::new(&key.into());
    for block in challenge.chunks_exact_mut(8) {
        cipher.encrypt_block(block.into());
    }
    challenge
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Gives what a server says, in pieces of odd sizes, and keeps what it is told.
    struct Script {
        says: VecDeque<Vec<u8>>,
        told: Vec<u8>,
    }

    impl Script {
        fn new(says: &[&[u8]]) -> Self {
            let says = says.concat().chunks(7).map(<[u8]>::to_vec).collect();
            Self { says, told: Vec::new() }
        }
    }

    impl Channel for Script {
        async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.told.extend(bytes);
            Ok(())
        }

        async fn receive(&mut self) -> io::Result<Vec<u8>> {
            self.says.pop_front().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        }
    }

    const HELLO: &[u8] = b"RFB 003.008\n\x01\x02";
    const CHALLENGE: &[u8; 16] = b"0123456789abcdef";
    const LET_IN: &[u8] = &[0; 4];

    fn init(width: u8, height: u8) -> Vec<u8> {
        [&[0, width, 0, height], [0; 16].as_slice(), b"\0\0\0\x04QEMU"].concat()
    }

    fn rectangle(x: u8, y: u8, width: u8, height: u8, encoding: i32, pixels: &[u8]) -> Vec<u8> {
        [&[0, x, 0, y, 0, width, 0, height], encoding.to_be_bytes().as_slice(), pixels].concat()
    }

    #[tokio::test]
    async fn a_screen_that_comes_in_pieces_and_changes_its_size_is_whole_in_the_end() {
        let red = [0, 0, 255, 0];
        let blue = [255, 0, 0, 0];
        let mut server = Script::new(&[
            HELLO,
            CHALLENGE,
            LET_IN,
            &init(9, 9),
            &[2],
            b"\x03\0\0\0\0\0\0\x04text",
            &[0, 0, 0, 1],
            &rectangle(0, 0, 2, 2, ENCODING_DESKTOP_SIZE, &[]),
            &[1, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6],
            &[0, 0, 0, 2],
            &rectangle(0, 0, 2, 1, ENCODING_RAW, &[red, blue].concat()),
            &rectangle(0, 0, 1, 1, ENCODING_RAW, &red),
            &[0, 0, 0, 1],
            &rectangle(0, 1, 2, 1, ENCODING_RAW, &[blue, red].concat()),
        ]);
        let picture = picture(&mut server, "secret12").await.unwrap();
        assert_eq!((picture.width, picture.height), (2, 2));
        assert_eq!(picture.pixels, [255, 0, 0, 0, 0, 255, 0, 0, 255, 255, 0, 0]);
        let asked = [3, 0, 0, 0, 0, 0, 0, 2, 0, 2];
        assert!(server.told.ends_with(&asked), "{:?}", server.told);
        let mut reader = png::Decoder::new(io::Cursor::new(picture.png())).read_info().unwrap();
        let mut pixels = vec![0; 12];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, picture.pixels);
    }

    #[tokio::test]
    async fn a_server_that_does_not_let_in_says_why() {
        let refusal = [HELLO, CHALLENGE, &[0, 0, 0, 1], b"\0\0\0\x02no"];
        let error = picture(&mut Script::new(&refusal), "x").await.unwrap_err();
        assert_eq!(error.to_string(), "the VNC server does not let forge in: no");
        let busy = picture(&mut Script::new(&[b"RFB 003.008\n\0\0\0\0\x04busy"]), "x").await.unwrap_err();
        assert_eq!(busy.to_string(), "the VNC server refuses: busy");
        for bad in [&b"HTTP/1.1 200"[..], b"RFB 003.008\n\x01\x13", b"RFB 003.008\n\x01\x01\0\0\0\0\0\0\0\0"]
        {
            assert!(picture(&mut Script::new(&[bad, &[0; 64]]), "x").await.is_err());
        }
    }

    #[tokio::test]
    async fn rectangles_out_of_the_screen_are_refused() {
        for outside in [rectangle(1, 0, 2, 1, ENCODING_RAW, &[0; 8]), rectangle(0, 0, 1, 1, 7, &[])] {
            let mut server = Script::new(&[HELLO, CHALLENGE, LET_IN, &init(2, 2), &[0, 0, 0, 1], &outside]);
            assert_eq!(picture(&mut server, "x").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn the_challenge_is_answered_as_vnc_servers_expect() {
        // What `openssl enc -des-ecb -nopad` makes of the challenge with the password's bytes turned around.
        let expected = 0x5645_abeb_5f1e_6475_e8fe_b11b_eb66_ea19_u128.to_be_bytes();
        assert_eq!(respond("password", *CHALLENGE), expected);
        assert_eq!(respond("password and more", *CHALLENGE), expected);
    }
}
