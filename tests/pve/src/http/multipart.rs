//! The upload parser: a copy in behaviour of pveproxy's regex machine, its faults included.
//!
//! It looks only at what has been read so far. When a read ends inside the headers of the file
//! part, the rest of those headers becomes the start of the file; that is Proxmox's fault, not ours.
//! Source: pve-http-server `file_upload_multipart`.

use std::collections::BTreeMap;

use regex::bytes::Regex;

const FILE: &str = "/usr/share/perl5/PVE/APIServer/AnyEvent.pm";

/// What has been read of an upload.
#[derive(Debug)]
pub(crate) struct Upload {
    delimiter: String,
    closing: Vec<u8>,
    buffer: Vec<u8>,
    phase: Phase,
    /// Parameters that came as parts.
    pub(crate) fields: BTreeMap<String, String>,
    filename_regex: Regex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Boundary,
    Headers,
    Data,
    Done,
}

const NEWLINE: &str = r"\r?\n";

impl Upload {
    pub(crate) fn new(boundary: &str) -> Self {
        let delimiter = format!("--{}{NEWLINE}", regex::escape(boundary));
        let filename =
            format!(r#"(?s-u)^{delimiter}Content-Disposition: (.*?); name="(.*?)"; filename="([^"]+)""#);
        Self {
            closing: format!("--{boundary}--").into_bytes(),
            buffer: Vec::new(),
            phase: Phase::Boundary,
            fields: BTreeMap::new(),
            filename_regex: compile(&filename),
            delimiter,
        }
    }

    /// Takes what one read of the socket gave; returns bytes of the file.
    ///
    /// # Errors
    /// The text with which the server's code dies.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        self.buffer.extend_from_slice(bytes);
        if self.phase == Phase::Boundary
            && let Some(found) = compile(&format!("(?s-u){}", self.delimiter)).find(&self.buffer)
        {
            let start = found.start();
            self.buffer.drain(..start);
            self.phase = Phase::Headers;
        }
        if self.phase == Phase::Headers {
            for name in ["content", "checksum-algorithm", "checksum"] {
                self.take_field(name)?;
            }
            self.take_file_name()?;
        }
        if self.phase == Phase::Data { Ok(self.take_data()) } else { Ok(Vec::new()) }
    }

    /// Whether the closing boundary has been seen.
    ///
    /// # Errors
    /// The server's text when it has not.
    pub(crate) fn finish(&self) -> Result<(), String> {
        if self.phase == Phase::Done {
            return Ok(());
        }
        Err(format!("upload failed at {FILE} line 1317.\n"))
    }

    fn take_field(&mut self, name: &str) -> Result<(), String> {
        let delimiter = &self.delimiter;
        let regex = compile(&format!(
            r#"(?s-u)^{delimiter}Content-Disposition: (.*?); name="{name}"(.*?)({delimiter})"#
        ));
        let Some(found) = regex.captures(&self.buffer) else {
            return Ok(());
        };
        check_disposition(&found[1])?;
        let rest = String::from_utf8_lossy(&found[2]).into_owned();
        let end = found.get(3).expect("the group always matches").start();
        let blank = rest.find("\r\n\r\n").map(|at| at + 4).or_else(|| rest.find("\n\n").map(|at| at + 2));
        let value = rest[blank.unwrap_or(0)..].trim().to_owned();
        self.fields.insert(name.into(), value);
        self.buffer.drain(..end);
        Ok(())
    }

    fn take_file_name(&mut self) -> Result<(), String> {
        let Some(found) = self.filename_regex.captures(&self.buffer) else {
            return Ok(());
        };
        check_disposition(&found[1])?;
        let name = String::from_utf8_lossy(&found[2]).into_owned();
        if name != "filename" {
            return Err(format!(
                "wrong field name '{name}' for file upload, expected 'filename' at {FILE} line 1281.\n"
            ));
        }
        let file = String::from_utf8_lossy(&found[3]).trim().to_owned();
        let end = found.get(0).expect("group 0 always matches").end();
        self.fields.insert("filename".into(), file);
        self.buffer.drain(..end);
        // Only what has been read by now is seen as headers.
        if let Some(blank) = compile(&format!("(?s-u)^.*?(?:{NEWLINE}){{2}}")).find(&self.buffer) {
            let end = blank.end();
            self.buffer.drain(..end);
        }
        self.phase = Phase::Data;
        Ok(())
    }

    fn take_data(&mut self) -> Vec<u8> {
        if let Some(at) = memchr::memmem::find(&self.buffer, &self.closing) {
            let mut data = std::mem::take(&mut self.buffer);
            data.truncate(at);
            if data.last() == Some(&b'\n') {
                data.pop();
                if data.last() == Some(&b'\r') {
                    data.pop();
                }
            }
            self.phase = Phase::Done;
            return data;
        }
        let keep = self.closing.len() + 2;
        let ready = self.buffer.len().saturating_sub(keep);
        let rest = self.buffer.split_off(ready);
        std::mem::replace(&mut self.buffer, rest)
    }
}

fn check_disposition(found: &[u8]) -> Result<(), String> {
    if found == b"form-data" {
        return Ok(());
    }
    let found = String::from_utf8_lossy(found);
    Err(format!(
        "wrong Content-Disposition '{found}' in multipart, expected 'form-data' at {FILE} line 1205.\n"
    ))
}

fn compile(pattern: &str) -> Regex {
    Regex::new(pattern).expect("boundaries are escaped and the rest is fixed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(headers: &str, value: &str) -> String {
        format!("--b\r\n{headers}\r\n\r\n{value}\r\n")
    }

    fn field(name: &str, value: &str) -> String {
        part(&format!("Content-Disposition: form-data; name=\"{name}\""), value)
    }

    fn file(value: &str) -> String {
        part(
            "Content-Disposition: form-data; name=\"filename\"; filename=\"x.iso\"\r\n\
             Content-Type: application/octet-stream",
            value,
        )
    }

    fn run(reads: &[&str]) -> Result<(Upload, Vec<u8>), String> {
        let mut upload = Upload::new("b");
        let mut data = Vec::new();
        for read in reads {
            data.extend(upload.push(read.as_bytes())?);
        }
        upload.finish()?;
        Ok((upload, data))
    }

    #[test]
    fn a_right_upload_gives_its_fields_and_file() {
        let body = field("content", "iso")
            + &field("checksum-algorithm", "sha256")
            + &field("checksum", "ab")
            + &file("DATA\r\n")
            + "--b--\r\n";
        let (upload, data) = run(&[&body]).unwrap();
        assert_eq!(upload.fields["content"], "iso");
        assert_eq!(upload.fields["checksum"], "ab");
        assert_eq!(upload.fields["filename"], "x.iso");
        assert_eq!(data, b"DATA\r\n");
        let (_, data) = run(&[&body.replace("\r\n", "\n")]).unwrap();
        assert_eq!(data, b"DATA\n");
    }

    #[test]
    fn a_read_that_ends_in_the_file_headers_puts_them_into_the_file() {
        let body = field("content", "iso") + &file("DATA") + "--b--\r\n";
        let split = body.find("Content-Type").unwrap();
        let (_, data) = run(&[&body[..split], &body[split..]]).unwrap();
        assert!(data.starts_with(b"\r\nContent-Type: application/octet-stream"), "the known fault");
        let split = body.find("DATA").unwrap();
        assert_eq!(run(&[&body[..split], &body[split..]]).unwrap().1, b"DATA");
    }

    #[test]
    fn other_orders_and_names_die_as_in_perl() {
        let swapped =
            field("content", "iso") + &field("checksum", "ab") + &field("checksum-algorithm", "md5");
        let error = run(&[&(swapped + &file("D") + "--b--")]).unwrap_err();
        assert!(error.starts_with("wrong Content-Disposition") && error.contains('\r'));
        let extra = field("content", "iso") + &field("comment", "x") + &file("D") + "--b--";
        assert!(run(&[&extra]).unwrap_err().contains('\r'));
        let named = file("D").replace("name=\"filename\"", "name=\"file\"") + "--b--";
        assert!(run(&[&named]).unwrap_err().starts_with("wrong field name 'file'"));
        let lower = file("D").replace("Content-Disposition", "content-disposition") + "--b--";
        assert!(run(&[&lower]).unwrap_err().starts_with("upload failed at"));
    }

    #[test]
    fn the_file_comes_whole_however_it_is_cut() {
        let data = "x".repeat(5000) + "--b-" + &"y".repeat(300);
        let body = field("content", "iso") + &file(&data) + "--b--\r\n";
        let head = body.find("xxx").unwrap();
        for size in [1, 7, 64, 1000] {
            let chunks: Vec<&str> = std::iter::once(&body[..head])
                .chain(body.as_bytes()[head..].chunks(size).map(|c| std::str::from_utf8(c).unwrap()))
                .collect();
            assert_eq!(run(&chunks).unwrap().1, data.as_bytes(), "{size}");
        }
    }
}
