//! Security associations of TCP-MD5: which two hosts share which secret.
//!
//! FreeBSD: sys/netipsec/key.c (key_allocsa_tcpmd5), sbin/setkey
//! Not carried over: IPsec, and PF_KEY sockets; `setkey` calls the database itself.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;

use sys::errno::Errno;
use sys::kern::kern_mutex::Mutex;
use sys::kern::lock_order::Leaf;

/// Longest secret, in bytes (`_KEYLEN(80 * 8)` of tcp-md5).
const TCP_KEYLEN_MAX: usize = 80;

/// A secret for what one host sends to another.
#[doc(alias = "secasvar")]
#[derive(Clone)]
struct SecAssoc {
    src: IpAddr,
    dst: IpAddr,
    /// Number by which it is named.
    spi: u32,
    key: Arc<[u8]>,
}

/// The associations of a stack instance.
pub struct Keydb(Mutex<Vec<SecAssoc>, Leaf>);

impl Default for Keydb {
    fn default() -> Self {
        Self::new()
    }
}

impl Keydb {
    /// None.
    pub fn new() -> Keydb {
        Keydb(Mutex::new(Vec::new()))
    }

    /// The secret for segments from `src` to `dst`.
    #[doc(alias = "key_allocsa_tcpmd5")]
    pub fn lookup(&self, src: IpAddr, dst: IpAddr) -> Option<Arc<[u8]>> {
        let all = self.0.lock();
        let found = all.iter().find(|sa| sa.src == src && sa.dst == dst);
        found.map(|sa| sa.key.clone())
    }

    /// Adds an association. `EEXIST` if there is one with these ends and number, `EINVAL` if the secret is empty or too
    /// long, or the ends are of different families.
    #[doc(alias = "key_add")]
    pub fn add(&self, src: IpAddr, dst: IpAddr, spi: u32, key: &[u8]) -> Result<(), Errno> {
        if key.is_empty() || key.len() > TCP_KEYLEN_MAX || src.is_ipv6() != dst.is_ipv6() {
            return Err(Errno::EINVAL);
        }
        let sa = SecAssoc {
            src,
            dst,
            spi,
            key: key.into(),
        };
        let mut all = self.0.lock();
        if all
            .iter()
            .any(|known| (known.src, known.dst, known.spi) == (src, dst, spi))
        {
            return Err(Errno::EEXIST);
        }
        all.push(sa);
        Ok(())
    }

    /// Takes associations between two hosts away, with a number only that one. `ESRCH` if there is none.
    #[doc(alias = "key_delete")]
    pub fn delete(&self, src: IpAddr, dst: IpAddr, spi: Option<u32>) -> Result<(), Errno> {
        let mut all = self.0.lock();
        let before = all.len();
        all.retain(|sa| (sa.src, sa.dst) != (src, dst) || spi.is_some_and(|spi| spi != sa.spi));
        if all.len() == before {
            return Err(Errno::ESRCH);
        }
        Ok(())
    }

    /// Takes all away.
    #[doc(alias = "key_flush")]
    pub fn flush(&self) {
        self.0.lock().clear();
    }

    /// All associations, as `setkey -D` shows them.
    #[doc(alias = "key_dump")]
    pub fn dump(&self) -> String {
        let all = self.0.lock().clone();
        if all.is_empty() {
            return "No SAD entries.\n".to_string();
        }
        all.iter().map(show).collect()
    }

    /// Runs the operations that `setkey -c` reads: `add`, `delete`, `deleteall`, `get`, `flush`, `dump`, each ended by `;`.
    /// Returns what they print, or on which line what is wrong.
    pub fn setkey(&self, text: &str) -> Result<String, String> {
        let mut out = String::new();
        for (line, words) in operations(text)? {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            out += &self
                .operation(&words)
                .map_err(|reason| format!("line {line}: {reason}"))?;
        }
        Ok(out)
    }

    fn operation(&self, words: &[&str]) -> Result<String, String> {
        let result = |result: Result<(), Errno>| result.map(|()| String::new());
        let done = match words {
            ["add", src, dst, "tcp", spi, rest @ ..] => {
                let key = secret(rest)?;
                result(self.add(address(src)?, address(dst)?, number(spi)?, &key))
            }
            ["delete", src, dst, "tcp", spi] => {
                result(self.delete(address(src)?, address(dst)?, Some(number(spi)?)))
            }
            ["deleteall", src, dst, "tcp"] => {
                result(self.delete(address(src)?, address(dst)?, None))
            }
            ["get", src, dst, "tcp", spi] => {
                let wanted = (address(src)?, address(dst)?, number(spi)?);
                let all = self.0.lock().clone();
                let found = all.iter().find(|sa| (sa.src, sa.dst, sa.spi) == wanted);
                found.map(show).ok_or(Errno::ENOENT)
            }
            ["flush"] | ["flush", "tcp"] => {
                self.flush();
                Ok(String::new())
            }
            ["dump"] | ["dump", "tcp"] => Ok(self.dump()),
            [other, ..] => return Err(format!("syntax error at [{other}]")),
            [] => Ok(String::new()),
        };
        done.map_err(|errno| format!("{errno}."))
    }
}

fn show(sa: &SecAssoc) -> String {
    let mut hex = String::new();
    for (at, byte) in sa.key.iter().enumerate() {
        if at > 0 && at % 4 == 0 {
            hex.push(' ');
        }
        hex += &format!("{byte:02x}");
    }
    format!(
        "{} {}\n\ttcp mode=any spi={}({:#010x}) reqid=0(0x00000000)\n\tA: tcp-md5  {hex}\n\tstate=mature\n",
        sa.src, sa.dst, sa.spi, sa.spi
    )
}

fn address(word: &str) -> Result<IpAddr, String> {
    word.parse()
        .map_err(|_| format!("syntax error at [{word}]"))
}

fn number(word: &str) -> Result<u32, String> {
    let parsed = match word.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => word.parse(),
    };
    parsed.map_err(|_| format!("syntax error at [{word}]"))
}

/// The secret behind `-A tcp-md5`; extensions that mean nothing to TCP-MD5 are refused.
fn secret(words: &[&str]) -> Result<Vec<u8>, String> {
    let (rest, key) = match words {
        [rest @ .., "-A", "tcp-md5", key] => (rest, key),
        _ => return Err("an association of TCP wants -A tcp-md5 and a secret".to_string()),
    };
    if let Some(other) = rest.first() {
        return Err(format!("syntax error at [{other}]"));
    }
    if let Some(text) = key.strip_prefix('"') {
        return Ok(text.as_bytes().to_vec());
    }
    let digits = key.strip_prefix("0x").unwrap_or("");
    let bad = || format!("syntax error at [{key}]");
    if digits.is_empty() || !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return Err(bad());
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| bad()))
        .collect()
}

/// Cuts text into operations, each with the line that it begins on. A quoted word keeps its first quote.
fn operations(text: &str) -> Result<Vec<(usize, Vec<String>)>, String> {
    let mut operations = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let (mut line, mut begun) = (1, 1);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\n' => line += 1,
            c if c.is_whitespace() => {}
            '#' => {
                rest = rest
                    .split_once('\n')
                    .map_or("", |_| &rest[rest.find('\n').unwrap_or(0)..])
            }
            ';' => operations.push((begun, core::mem::take(&mut words))),
            _ => {
                if words.is_empty() {
                    begun = line;
                }
                if c == '"' {
                    let Some((word, after)) = rest.split_once('"') else {
                        return Err(format!("line {line}: a quote without end"));
                    };
                    words.push(format!("\"{word}"));
                    rest = after;
                    continue;
                }
                let ends = |c: char| c.is_whitespace() || c == ';' || c == '#';
                let end = rest.find(ends).unwrap_or(rest.len());
                words.push(format!("{c}{}", &rest[..end]));
                rest = &rest[end..];
            }
        }
    }
    match words.is_empty() {
        true => Ok(operations),
        false => Err(format!(
            "line {line}: parse failed, an operation ends with ;"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::machine::hosted::Machine;

    fn addr(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn setkey_adds_shows_and_takes_away_associations() {
        Machine::builder().quiet().run(|| {
            let db = Keydb::new();
            let text = "# two of them\nadd 192.0.2.1 192.0.2.2 tcp 0x1000 -A tcp-md5 \"se cret\" ;\n\
                        add 2001:db8::1 2001:DB8::2 tcp 4097 -A tcp-md5 0x0102;";
            assert_eq!(db.setkey(text), Ok(String::new()));
            let (a, b) = (addr("192.0.2.1"), addr("192.0.2.2"));
            assert_eq!(db.lookup(a, b).as_deref(), Some(&b"se cret"[..]));
            assert_eq!(db.lookup(b, a), None);
            let six = (addr("2001:db8::1"), addr("2001:db8::2"));
            assert_eq!(db.lookup(six.0, six.1).as_deref(), Some(&[1, 2][..]));
            let shown = db.setkey("get 192.0.2.1 192.0.2.2 tcp 0x1000;").expect("one");
            assert!(shown.contains("spi=4096(0x00001000)") && shown.contains("73652063 726574"));
            assert_eq!(db.setkey("delete 192.0.2.1 192.0.2.2 tcp 4096;"), Ok(String::new()));
            assert_eq!(db.lookup(a, b), None);
            assert_eq!(db.setkey("flush; dump;"), Ok("No SAD entries.\n".into()));
        });
    }

    #[test]
    fn setkey_says_on_which_line_what_is_wrong() {
        Machine::builder().quiet().run(|| {
            let db = Keydb::new();
            for (text, line) in [
                ("\nadd 192.0.2.1 192.0.2.2 esp 1 -E null;", "line 2"),
                ("add 192.0.2.1 192.0.2.2 tcp 1 -A tcp-md5 secret;", "line 1"),
                ("add 192.0.2.1 192.0.2.2 tcp 1 -A tcp-md5 \"a", "line 1"),
                ("flush", "line 1"),
                ("flush;\ndelete 192.0.2.1 192.0.2.2 tcp 1;", "line 2"),
                ("add 192.0.2.1 ::1 tcp 1 -A tcp-md5 \"a\";", "line 1"),
                ("add 192.0.2.1 192.0.2.2 tcp 1 -A tcp-md5 \"\";", "line 1"),
            ] {
                let wrong = db.setkey(text).expect_err(text);
                assert!(wrong.starts_with(line), "{wrong}");
            }
            let twice = "add ::1 ::1 tcp 1 -A tcp-md5 \"a\";add ::1 ::1 tcp 1 -A tcp-md5 \"b\";";
            assert!(db.setkey(twice).is_err());
        });
    }
}
