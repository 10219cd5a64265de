//! An input as a list of records: each a control byte, a length, and bytes for one parser.
//!
//! Any bytes are a list, so that a mutation that knows nothing of records still makes inputs. What the control byte leaves
//! right (checksums, lengths, addresses) is put right when the frame is made and not in the input: most inputs get past
//! the first check, whatever was changed in them.

/// Bytes before those of a record: control, length in two bytes.
pub const HEAD: usize = 3;
/// Longest record; larger than any frame that the stack under test takes.
pub const MAX_RECORD: usize = 2048;
/// Most records that one input is read as.
pub const MAX_RECORDS: usize = 32;

/// What is done with one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Control(pub u8);

impl Control {
    /// Everything is put right, and nothing waited for.
    pub const USUAL: Control = Control(0);

    /// Whether checksums are made right.
    pub fn sums(self) -> bool {
        self.0 & 7 < 6
    }

    /// Whether lengths are.
    pub fn lengths(self) -> bool {
        self.0 & 7 != 7
    }

    /// Time before the frame, in microseconds.
    pub fn pause_us(self) -> u64 {
        match self.0 >> 3 & 7 {
            4 => 1_000,
            5 => 300_000,
            6 => 5_000_000,
            7 => 70_000_000,
            _ => 0,
        }
    }

    /// Whether it comes to a group, where there is one that fits.
    pub fn group(self) -> bool {
        self.0 >> 6 == 3
    }
}

/// One record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// What is done with it.
    pub control: Control,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// Reads an input as records; the last may be shorter than it says.
pub fn records(input: &[u8]) -> impl Iterator<Item = Record<'_>> {
    let mut rest = input;
    let next = move || {
        let (&[control, high, low], body) = rest.split_first_chunk::<HEAD>()?;
        let len = usize::from(u16::from_be_bytes([high, low])) % (MAX_RECORD + 1);
        let (bytes, after) = body.split_at(len.min(body.len()));
        rest = after;
        Some(Record {
            control: Control(control),
            bytes,
        })
    };
    std::iter::from_fn(next).take(MAX_RECORDS)
}

/// Appends a record.
pub fn push_record(input: &mut Vec<u8>, control: Control, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MAX_RECORD)];
    input.push(control.0);
    input.extend((bytes.len() as u16).to_be_bytes());
    input.extend(bytes);
}

/// Takes numbers from the front of an input; behind its end all are zero.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads `input` from its start.
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// Whether anything is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        byte
    }

    /// The next two.
    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    /// The next four.
    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }

    /// The next `len` bytes, or as many as are left.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// One of `from`.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.u8()) % from.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_and_any_bytes_are_records() {
        let mut input = Vec::new();
        push_record(&mut input, Control(9), &[1, 2, 3]);
        push_record(&mut input, Control::USUAL, &[]);
        let all: Vec<_> = records(&input).collect();
        assert_eq!(all[0].bytes, [1, 2, 3]);
        assert_eq!((all[0].control, all.len()), (Control(9), 2));
        assert_eq!(records(&[0, 0xff, 0xff, 7]).next().unwrap().bytes, [7]);
        assert_eq!(records(&[1, 2]).count(), 0);
    }

    #[test]
    fn a_reader_gives_zeros_behind_the_end() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert_eq!((reader.u16(), reader.u16()), (0x102, 0x300));
        assert!(reader.is_empty() && reader.bytes(4).is_empty());
    }
}
