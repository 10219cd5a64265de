//! An interpreter for packetdrill, the language of FreeBSD's TCP test suite.
//!
//! A script plays a program and the network around it: it makes socket calls, puts packets on the wire, and says which
//! packets the stack must answer with, and when. Here the stack, the wire and the clock are all in this process: the
//! hosted machine's time is virtual, so that a script of a minute takes a moment and always runs the same.
//!
//! `lexer` and `parser` read a script into the terms of `ast`; `executor` walks through its events, with `syscall` for
//! socket calls, `shell` for back-quoted lines, `assertion` for `%{ … }%`, `connection` for whose sequence numbers count
//! from where, `matcher` for what is expected of a packet. `wire` knows packets as bytes, `testbed` is the machine.
//! `suite` runs many scripts and `report` says how they went.

pub mod assertion;
pub mod ast;
pub mod connection;
pub mod executor;
pub mod lexer;
pub mod matcher;
pub mod parser;
pub mod report;
pub mod shell;
pub mod suite;
pub mod symbols;
pub mod syscall;
pub mod testbed;
pub mod wire;
