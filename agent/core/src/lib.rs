//! What the Muster agent decides, apart from how it is done.
//!
//! Everything here is a function of its arguments: the time comes in, effects go out, and neither a file nor a socket
//! is touched. So every order of events and every crash can be tried in a test. The agent daemon carries the effects
//! out; it has no choices left.
//!
//! | question | module |
//! |---|---|
//! | what happens when an assignment, a chunk, a test result comes in? | [`update`] |
//! | which program is the agent itself, and which runs at the next start? | [`program`] |
//! | what survives a crash? | [`record`], [`slots`] |
//! | does this device want a genuine bundle? | [`admit`] |
//! | which chunks are asked for next? | [`fetch`] |
//! | may they be asked for now? | [`delivery`] |
//! | what on the disk belongs to nothing any more? | [`garbage`] |
//! | what is given up when the outbox is full? | [`outbox`] |
//! | when is it tried again? | [`backoff`] |
//! | what time is it, and how sure is that? | [`clock`] |
//! | when is the certificate renewed? | [`renewal`] |
//! | which inferences are kept as samples? | [`reservoir`] |
//! | which refusals are worth telling? | [`refusals`] |
//! | is the device too hard pressed for what nobody waits for? | [`pressure`] |
//! | how often is done what anybody can ask for? | [`ration`] |
//! | which predictions are remembered for their labels? | [`feedback`] |
//! | is every part of the agent alive? | [`liveness`] |

pub mod admit;
pub mod backoff;
pub mod clock;
pub mod delivery;
pub mod feedback;
pub mod fetch;
pub mod freshness;
pub mod garbage;
pub mod liveness;
pub mod outbox;
mod pace;
pub mod pressure;
pub mod program;
pub mod ration;
pub mod record;
pub mod refusals;
pub mod renewal;
pub mod reservoir;
pub mod slots;
pub mod update;
