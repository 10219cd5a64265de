//! Read sections and deferred freeing.
