//! Values of arguments, and options as FreeBSD's programs lay them out.

use crate::ast::Expr;
use crate::symbols;
use sys::socket::{
    IPPROTO_TCP, SO_LINGER, SO_RCVTIMEO, SO_SNDTIMEO, SOL_SOCKET, TCP_CCALGOOPT, TCP_FUNCTION_BLK,
    TCP_INFO,
};

/// Bytes of a name in `struct tcp_function_set`.
const FUNCTION_NAME_LEN: usize = 32;

/// The number that an expression stands for.
pub fn number(expr: &Expr) -> Result<i64, String> {
    match expr {
        Expr::Int(value) => Ok(*value),
        Expr::Word(name) => symbols::lookup(name).ok_or_else(|| format!("unknown name `{name}`")),
        Expr::Or(terms) => {
            let mut bits = 0;
            for term in terms {
                bits |= number(term)?;
            }
            Ok(bits)
        }
        // Numbers here are in host order, whatever the wire's is.
        Expr::Call(name, args)
            if matches!(name.as_str(), "htons" | "htonl" | "ntohs" | "ntohl") =>
        {
            args.first()
                .map_or(Err(format!("{name} of nothing")), number)
        }
        Expr::Any => Err("`...` is no number here".into()),
        Expr::Text(text) => Err(format!("\"{text}\" is no number")),
        Expr::List(_) => Err("a list is no number".into()),
        Expr::Struct(_) => Err("a structure is no number".into()),
        Expr::Call(name, _) => Err(format!("unknown function `{name}`")),
    }
}

/// What `[x]` points to; anything else is itself.
pub fn pointed_to(expr: &Expr) -> &Expr {
    match expr {
        Expr::List(items) if items.len() == 1 => &items[0],
        expr => expr,
    }
}

/// Compares a number that a call stores with `[wanted]`.
pub fn check_number(what: &str, wanted: &Expr, seen: i64) -> Result<(), String> {
    match pointed_to(wanted) {
        Expr::Any => Ok(()),
        expr => match number(expr)? {
            wanted if wanted == seen => Ok(()),
            wanted => Err(format!("{what} is {seen}, not {wanted}")),
        },
    }
}

/// The bytes of an option's value, `len` long.
pub fn option_bytes(expr: &Expr, len: usize) -> Result<Vec<u8>, String> {
    let mut bytes = match pointed_to(expr) {
        Expr::Text(text) => text.as_bytes().to_vec(),
        Expr::Struct(fields) => struct_bytes(fields)?,
        expr => {
            let value = number(expr)?;
            match len {
                1 => vec![value as u8],
                8 => value.to_ne_bytes().to_vec(),
                _ => (value as i32).to_ne_bytes().to_vec(),
            }
        }
    };
    bytes.resize(len, 0);
    Ok(bytes)
}

/// A structure by the names of its members, or of numbers one after the other.
fn struct_bytes(fields: &[(Option<String>, Expr)]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for (name, expr) in fields {
        match (name.as_deref(), expr) {
            (_, Expr::Text(text)) => {
                let mut name = text.as_bytes().to_vec();
                name.resize(FUNCTION_NAME_LEN, 0);
                bytes.extend_from_slice(&name);
            }
            (Some("tv_sec" | "tv_usec"), expr) => bytes.extend(number(expr)?.to_ne_bytes()),
            (_, expr) => bytes.extend((number(expr)? as i32).to_ne_bytes()),
        }
    }
    Ok(bytes)
}

/// Compares an option's value with what the script says of it.
pub fn check_option(wanted: &Expr, option: (i32, i32), seen: &[u8]) -> Result<(), String> {
    match pointed_to(wanted) {
        Expr::Any => Ok(()),
        Expr::Text(text) => {
            let end = seen
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(seen.len());
            match &seen[..end] == text.as_bytes() {
                true => Ok(()),
                false => Err(format!(
                    "the option is \"{}\", not \"{text}\"",
                    String::from_utf8_lossy(&seen[..end])
                )),
            }
        }
        Expr::Struct(fields) => check_struct(fields, option, seen),
        expr => {
            let wanted = number(expr)?;
            let seen = match seen {
                [byte] => i64::from(*byte),
                _ => seen
                    .first_chunk()
                    .map_or(0, |word| i64::from(i32::from_ne_bytes(*word))),
            };
            match seen == wanted {
                true => Ok(()),
                false => Err(format!("the option is {seen}, not {wanted}")),
            }
        }
    }
}

/// Where members stand in the structures of options: name, offset, bytes; a text if more than 8.
fn layout(option: (i32, i32)) -> Option<&'static [(&'static str, usize, usize)]> {
    match option {
        (IPPROTO_TCP, TCP_INFO) => Some(symbols::TCP_INFO_FIELDS),
        (SOL_SOCKET, SO_LINGER) => Some(&[
            ("l_onoff", 0, 4),
            ("l_linger", 4, 4),
            ("onoff", 0, 4),
            ("linger", 4, 4),
        ]),
        (SOL_SOCKET, SO_RCVTIMEO | SO_SNDTIMEO) => Some(&[("tv_sec", 0, 8), ("tv_usec", 8, 8)]),
        (IPPROTO_TCP, TCP_CCALGOOPT) => Some(&[("name", 0, 4), ("val", 4, 4)]),
        (IPPROTO_TCP, TCP_FUNCTION_BLK) => Some(&[
            ("function_set_name", 0, FUNCTION_NAME_LEN),
            ("pcbcnt", FUNCTION_NAME_LEN, 4),
        ]),
        _ => None,
    }
}

fn check_struct(
    fields: &[(Option<String>, Expr)],
    option: (i32, i32),
    seen: &[u8],
) -> Result<(), String> {
    let known = layout(option).ok_or("the layout of this option is not known")?;
    for (at, (name, wanted)) in fields.iter().enumerate() {
        if *wanted == Expr::Any {
            continue;
        }
        let field = match name {
            Some(name) => known.iter().find(|(known, _, _)| known == name),
            None => known.get(at),
        };
        let (name, at, len) = *field.ok_or_else(|| format!("the option has no member {name:?}"))?;
        let bytes = seen
            .get(at..at + len)
            .ok_or_else(|| format!("{name} is not there"))?;
        if len > 8 {
            check_option(wanted, option, bytes).map_err(|e| format!("{name}: {e}"))?;
            continue;
        }
        let found = match (option, len) {
            ((IPPROTO_TCP, TCP_INFO), _) => symbols::tcp_info_field(seen, name).unwrap_or(0),
            (_, 8) => bytes
                .first_chunk()
                .map_or(0, |word| i64::from_ne_bytes(*word)),
            _ => bytes
                .first_chunk()
                .map_or(0, |word| i64::from(i32::from_ne_bytes(*word))),
        };
        check_number(name, wanted, found)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, value: i64) -> (Option<String>, Expr) {
        (Some(name.into()), Expr::Int(value))
    }

    #[test]
    fn options_are_laid_out_and_read_as_programs_do() {
        let linger = Expr::Struct(vec![named("l_onoff", 1), named("l_linger", 5)]);
        let bytes = option_bytes(&linger, 8).expect("a structure");
        assert_eq!(
            check_option(&linger, (SOL_SOCKET, SO_LINGER), &bytes),
            Ok(())
        );
        let other = Expr::Struct(vec![named("l_linger", 6)]);
        assert!(check_option(&other, (SOL_SOCKET, SO_LINGER), &bytes).is_err());
        let one = Expr::List(vec![Expr::Int(7)]);
        assert_eq!(option_bytes(&one, 1), Ok(vec![7]));
        assert_eq!(check_option(&one, (0, 0), &7i32.to_ne_bytes()), Ok(()));
        assert!(check_option(&one, (0, 0), &[8]).is_err());
    }

    #[test]
    fn names_and_flags_are_freebsds_numbers() {
        let or = Expr::Or(vec![
            Expr::Word("O_RDWR".into()),
            Expr::Word("O_NONBLOCK".into()),
        ]);
        assert_eq!(number(&or), Ok(6));
        assert_eq!(number(&Expr::Word("ECONNREFUSED".into())), Ok(61));
        assert!(number(&Expr::Word("E_NO_SUCH".into())).is_err());
    }
}
