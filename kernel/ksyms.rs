//! Names of addresses, for backtraces.
//!
//! FreeBSD: sys/kern/kern_linker.c (linker_ddb_search_symbol)
//! Differs from FreeBSD: the table is a text that the boot loader brings as a module, a line `address name` for each
//! function in hexadecimal and ascending order; searching it needs no memory, so it works in any panic.

use spin::Once;

static TABLE: Once<&'static [u8]> = Once::new();

/// Installs the table.
pub fn ksyms_set(table: &'static [u8]) {
    TABLE.call_once(|| table);
}

/// The function that `address` lies in, and how far.
pub fn ksyms_lookup(address: u64) -> Option<(&'static str, u64)> {
    lookup(TABLE.get()?, address)
}

fn lookup(table: &[u8], address: u64) -> Option<(&str, u64)> {
    // The last line that begins at or before `address`: `low` is its start or 0, `high` a later line's or the end.
    let (mut low, mut high) = (0, table.len());
    while low < high {
        let middle = line_start(table, low + (high - low) / 2);
        let next = line_end(table, middle);
        match parse(&table[middle..next]) {
            Some((start, _)) if start <= address => {
                if next >= high {
                    low = middle;
                    break;
                }
                // `next` may be beyond: keep this line's start only if the next one begins too late.
                match parse(&table[next..line_end(table, next)]) {
                    Some((start, _)) if start <= address => low = next,
                    _ => {
                        low = middle;
                        break;
                    }
                }
            }
            _ => high = middle,
        }
    }
    let (start, name) = parse(&table[low..line_end(table, low)])?;
    (start <= address).then(|| (name, address - start))
}

/// Start of the line that byte `at` is in.
fn line_start(table: &[u8], at: usize) -> usize {
    table[..at]
        .iter()
        .rposition(|&b| b == b'\n')
        .map_or(0, |i| i + 1)
}

/// Start of the line after the one that starts at `start`.
fn line_end(table: &[u8], start: usize) -> usize {
    let rest = &table[start..];
    start
        + rest
            .iter()
            .position(|&b| b == b'\n')
            .map_or(rest.len(), |i| i + 1)
}

fn parse(line: &[u8]) -> Option<(u64, &str)> {
    let (address, name) = core::str::from_utf8(line)
        .ok()?
        .trim_end()
        .split_once(' ')?;
    Some((
        u64::from_str_radix(address.trim_start_matches("0x"), 16).ok()?,
        name,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"1000 start\n1010 middle of three\nfff0000000000000 end\n";

    #[test]
    fn an_address_is_found_in_the_function_it_lies_in() {
        assert_eq!(lookup(TABLE, 0xfff), None);
        assert_eq!(lookup(TABLE, 0x1000), Some(("start", 0)));
        assert_eq!(lookup(TABLE, 0x100f), Some(("start", 0xf)));
        assert_eq!(lookup(TABLE, 0x1010), Some(("middle of three", 0)));
        assert_eq!(lookup(TABLE, 0x9999), Some(("middle of three", 0x8989)));
        assert_eq!(lookup(TABLE, u64::MAX), Some(("end", 0xf_ffff_ffff_ffff)));
    }

    #[test]
    fn every_line_of_a_long_table_is_found() {
        use alloc::format;
        let table = (0..1000u64)
            .map(|i| format!("{:x} f{i}\n", 0x4000 + i * 7))
            .collect::<alloc::string::String>();
        for address in 0x4000..0x4000 + 7000 {
            let (name, offset) = lookup(table.as_bytes(), address).unwrap();
            assert_eq!(name, format!("f{}", (address - 0x4000) / 7));
            assert_eq!(offset, (address - 0x4000) % 7);
        }
    }

    #[test]
    fn a_table_without_lines_knows_nothing() {
        assert_eq!(lookup(b"", 1), None);
        assert_eq!(lookup(b"garbage", 1), None);
    }
}
