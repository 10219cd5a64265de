//! Link-layer address tables.
