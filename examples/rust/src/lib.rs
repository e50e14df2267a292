//! What a program needs to ask a Muster agent on its device: one request with a deadline ([`ask`]), what its outcome means
//! ([`verdict`]), how long to wait until the next ([`backoff`]), and a loop of the three that gives up in the end ([`persist`]).
//!
//! Which inputs there are and what becomes of the answers is the program's own. Copy what you need: nothing else of Muster is used.

pub mod ask;
pub mod backoff;
pub mod persist;
pub mod verdict;
