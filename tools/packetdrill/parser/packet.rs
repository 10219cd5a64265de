//! Packets: `< S 0:0(0) win 65535 <mss 1460>`.

use super::{Parsed, Parser};
use crate::ast::{
    Body, Direction, EcnSpec, IcmpSpec, IpSpec, Md5, Packet, Quoted, SeqSpec, TcpOption, TcpSpec,
    UdpPorts,
};
use crate::lexer::{Kind, error};
use crate::wire::{MAX_OPTIONS, TcpFlag, encode_options};

impl Parser {
    /// A packet; `<` or `>` is next.
    pub(super) fn packet(&mut self, direction: Direction) -> Parsed<Packet> {
        self.advance();
        let ip = self.ip_spec()?;
        let body = if self.eat_word("icmp") {
            Body::Icmp(self.icmp()?)
        } else if self.eat_word("udp") {
            self.expect('(')?;
            let len = self.number("a length")?;
            self.expect(')')?;
            Body::Udp(len)
        } else {
            Body::Tcp(self.tcp(direction)?)
        };
        let encapsulation = self.encapsulation()?;
        Ok(Packet {
            direction,
            ip,
            body,
            encapsulation,
        })
    }

    /// `(ttl 6)`, `(tos 0x10)`, `[ect0]`, in any number.
    fn ip_spec(&mut self) -> Parsed<IpSpec> {
        let mut ip = IpSpec::default();
        loop {
            if self.eat('[') {
                ip.ecn = Some(self.ecn()?);
                self.expect(']')?;
            } else if self.eat('(') {
                while !self.eat(')') {
                    self.ip_field(&mut ip)?;
                    self.eat(',');
                }
            } else {
                return Ok(ip);
            }
        }
    }

    fn ip_field(&mut self, ip: &mut IpSpec) -> Parsed<()> {
        let pos = self.token().pos;
        let Some(name) = self.word() else {
            return Err(self.unexpected("a field of the IP header"));
        };
        match name.as_str() {
            "ttl" | "hlim" => ip.ttl = Some(self.number("a time to live")?),
            "tos" | "class" => ip.tos = Some(self.number("a type of service")?),
            "flowlabel" => ip.flowlabel = Some(self.number("a flow label")?),
            _ => {
                self.at -= 1;
                ip.ecn =
                    Some(self.ecn().map_err(|_| {
                        error(pos, format!("unknown field of the IP header `{name}`"))
                    })?);
            }
        }
        Ok(())
    }

    fn ecn(&mut self) -> Parsed<EcnSpec> {
        let pos = self.token().pos;
        match self.word().as_deref() {
            Some("noecn") => Ok(EcnSpec::NoEcn),
            Some("ect0") => Ok(EcnSpec::Ect0),
            Some("ect1") => Ok(EcnSpec::Ect1),
            Some("ect01") => Ok(EcnSpec::Ect01),
            Some("ce") => Ok(EcnSpec::Ce),
            _ => Err(error(pos, "expected noecn, ect0, ect1, ect01 or ce")),
        }
    }

    fn tcp(&mut self, direction: Direction) -> Parsed<TcpSpec> {
        let flags = self.tcp_flags()?;
        let inbound = direction == Direction::Inbound;
        let (seq, len) = self.sequence()?;
        if inbound && seq == SeqSpec::Any {
            return Err(self.unexpected("a sequence number of a packet that is sent"));
        }
        let ack = match self.eat_word("ack") {
            true => Some(self.number("an acknowledgement number")?),
            false => None,
        };
        let win = match self.eat_word("win") {
            true => Some(self.number("a window")?),
            false if inbound => return Err(self.unexpected("`win` of a packet that is sent")),
            false => None,
        };
        let urg = match self.eat_word("urg") {
            true => Some(self.number("an urgent pointer")?),
            false => None,
        };
        let options = self.tcp_options(direction)?;
        Ok(TcpSpec {
            flags,
            seq,
            len,
            ack,
            win,
            urg,
            options,
        })
    }

    /// `S.`, `.`, `SEW`, `-`: words and dots up to the next space, but a dot may stand alone behind a word.
    fn tcp_flags(&mut self) -> Parsed<u16> {
        if self.eat('-') {
            return Ok(0);
        }
        let mut flags = 0;
        let mut first = true;
        loop {
            let token = self.token().clone();
            match token.kind {
                Kind::Punct('.') if first || !token.spaced || flags & TcpFlag::ACK == 0 => {
                    self.advance();
                    flags |= TcpFlag::ACK;
                }
                Kind::Word(letters) if first || !token.spaced => {
                    self.advance();
                    for letter in letters.chars() {
                        flags |= TcpFlag::from_letter(letter).ok_or_else(|| {
                            error(
                                token.pos,
                                format!("`{letter}` of `{letters}` is no TCP flag"),
                            )
                        })?;
                    }
                }
                _ if first => return Err(self.unexpected("TCP flags, `udp` or `icmp`")),
                _ => return Ok(flags),
            }
            first = false;
        }
    }

    /// `1:101(100)`, `0:0(0)!`, `...(0)`.
    fn sequence(&mut self) -> Parsed<(SeqSpec, u32)> {
        let pos = self.token().pos;
        if self.token().kind == Kind::Ellipsis {
            self.advance();
            let len = self.length()?;
            return Ok((SeqSpec::Any, len));
        }
        let start: u32 = self.number("a sequence number")?;
        self.expect(':')?;
        let end: u32 = self.number("a sequence number")?;
        let len = self.length()?;
        if start.wrapping_add(len) != end {
            return Err(error(
                pos,
                format!("{start} and {len} bytes do not end at {end}"),
            ));
        }
        let seq = match self.eat('!') {
            true => SeqSpec::Absolute(start),
            false => SeqSpec::Relative(start),
        };
        Ok((seq, len))
    }

    fn length(&mut self) -> Parsed<u32> {
        self.expect('(')?;
        let pos = self.token().pos;
        let len: u16 = self.number("a length")?;
        self.expect(')')?;
        if len > u16::MAX - 60 {
            return Err(error(pos, format!("{len} bytes do not fit a packet")));
        }
        Ok(len.into())
    }

    /// `<mss 1460,nop,wscale 6>`; nothing means that there are none, `<...>` that they do not matter.
    fn tcp_options(&mut self, direction: Direction) -> Parsed<Option<Vec<TcpOption>>> {
        let pos = self.token().pos;
        // `<` could also begin the next event, but events begin with their time.
        if !self.eat('<') {
            return Ok(Some(Vec::new()));
        }
        if self.token().kind == Kind::Ellipsis {
            if direction == Direction::Inbound {
                return Err(self.unexpected("the options of a packet that is sent"));
            }
            self.advance();
            self.expect('>')?;
            return Ok(None);
        }
        let mut options = Vec::new();
        while !self.eat('>') {
            options.push(self.tcp_option()?);
            if !self.eat(',') && self.token().kind != Kind::Punct('>') {
                return Err(self.unexpected("`,` or `>`"));
            }
        }
        let len = encode_options(&options, [0; 16]).len();
        if !len.is_multiple_of(4) {
            let reason = format!("{len} bytes of options are no whole 32-bit words");
            return Err(error(pos, reason));
        }
        if len > MAX_OPTIONS {
            let reason = format!("{len} bytes of options are more than {MAX_OPTIONS}");
            return Err(error(pos, reason));
        }
        Ok(Some(options))
    }

    fn tcp_option(&mut self) -> Parsed<TcpOption> {
        let pos = self.token().pos;
        let Some(name) = self.word() else {
            return Err(self.unexpected("a TCP option"));
        };
        Ok(match name.as_str() {
            "eol" => TcpOption::Eol,
            "nop" => TcpOption::Nop,
            "mss" => TcpOption::Mss(self.number("a segment size")?),
            "wscale" => TcpOption::WindowScale(self.number("a window scale")?),
            "sackOK" => TcpOption::SackPermitted,
            "sack" => TcpOption::Sack(self.sack_blocks()?),
            "TS" => {
                let mut value = |name: &str| match self.eat_word(name) {
                    true => self.number("a timestamp"),
                    false => Err(self.unexpected(&format!("`{name}`"))),
                };
                TcpOption::Timestamps {
                    val: value("val")?,
                    ecr: value("ecr")?,
                }
            }
            "FO" => TcpOption::FastOpen(self.hex()?),
            "FOEXP" => TcpOption::FastOpenExperimental(self.hex()?),
            "md5" => TcpOption::Md5(self.md5()?),
            "kind" => {
                let kind = self.number("an option's kind")?;
                let data = self.hex()?;
                TcpOption::Other { kind, data }
            }
            _ => return Err(error(pos, format!("unknown TCP option `{name}`"))),
        })
    }

    fn sack_blocks(&mut self) -> Parsed<Vec<(u32, u32)>> {
        let mut blocks = Vec::new();
        while matches!(self.token().kind, Kind::Word(_)) {
            let start = self.number("a sequence number")?;
            self.expect(':')?;
            blocks.push((start, self.number("a sequence number")?));
        }
        Ok(blocks)
    }

    fn md5(&mut self) -> Parsed<Md5> {
        let pos = self.token().pos;
        if self.eat_word("valid") {
            return Ok(Md5::Valid);
        }
        if self.eat_word("invalid") {
            return Ok(Md5::Invalid);
        }
        let digest = self.hex()?.try_into();
        digest
            .map(Md5::Digest)
            .map_err(|_| error(pos, "expected `valid`, `invalid` or 32 hexadecimal digits"))
    }

    /// Bytes in hexadecimal, perhaps none.
    fn hex(&mut self) -> Parsed<Vec<u8>> {
        let pos = self.token().pos;
        let digits = self.word().unwrap_or_default();
        let bad = || error(pos, format!("`{digits}` are no bytes in hexadecimal"));
        let digits = digits.strip_prefix("0x").unwrap_or(&digits);
        if !digits.len().is_multiple_of(2) {
            return Err(bad());
        }
        let bytes = (0..digits.len()).step_by(2);
        bytes
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| bad()))
            .collect()
    }

    /// `/udp(1 > 9811)`.
    fn encapsulation(&mut self) -> Parsed<Option<UdpPorts>> {
        if !self.eat('/') {
            return Ok(None);
        }
        if !self.eat_word("udp") {
            return Err(self.unexpected("`udp`"));
        }
        self.expect('(')?;
        let source = self.number("a port")?;
        self.expect('>')?;
        let destination = self.number("a port")?;
        self.expect(')')?;
        Ok(Some(UdpPorts {
            source,
            destination,
        }))
    }

    /// `unreachable port_unreachable [0:0(0)]`.
    fn icmp(&mut self) -> Parsed<IcmpSpec> {
        let pos = self.token().pos;
        let Some(kind) = self.word() else {
            return Err(self.unexpected("a type of ICMP"));
        };
        // The next event may begin with a number, but behind a type stands a code, `mtu`, `[` or the end.
        let starts_event = |parser: &Parser| parser.next_token().kind == Kind::Punct('.');
        let mut code = None;
        if !self.is_word("mtu") && !starts_event(self) {
            code = self.word();
        }
        let mtu = match self.eat_word("mtu") {
            true => Some(self.number("an MTU")?),
            false => None,
        };
        let mut quoted = None;
        if self.eat('[') {
            if self.eat_word("udp") {
                self.expect('(')?;
                quoted = Some(Quoted::Udp(self.number("a length")?));
                self.expect(')')?;
            } else {
                let (seq, len) = self.sequence()?;
                let SeqSpec::Relative(seq) = seq else {
                    return Err(self.unexpected("a relative sequence number"));
                };
                quoted = Some(Quoted::Tcp {
                    seq,
                    len,
                    encapsulation: self.encapsulation()?,
                });
            }
            self.expect(']')?;
        }
        Ok(IcmpSpec {
            kind,
            code,
            mtu,
            quoted,
            pos,
        })
    }
}
